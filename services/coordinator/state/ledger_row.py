"""The flat records of a group: Redis's facts of a live group, and the row in the ledger's files (columns: docs/ledger.md)."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from services.coordinator.state.group import Admission, Attempt, Group, PromptLike, QueuedGroup, Reward, Sample

EXTRACTED_CHARACTERS = 200
"""How much of an extracted answer a row keeps: answers are short, and a rambling answer is not worth the bytes."""

PARTS = 32
"""How many named components of a score a row keeps, the first by name, because a user's function may return any number."""

TOOLS = 32
"""How many names of tools a row keeps, the first by name, because a policy may call whatever it makes up."""


def open_info(group: Group) -> dict[str, Any]:
    """JSON facts of an open group, enough to generate the group again from its prompt."""
    admitted = None if group.admitted is None else _shallow(group.admitted)
    info = {"admission": group.admission, "cursor": group.cursor, "prompt_id": group.prompt.prompt_id}
    return info | {"admitted": admitted} | ({"trace_id": group.trace_id} if group.trace_id else {})


def reopened(group_id: str, info: Mapping[str, Any], prompt: PromptLike) -> Group:
    """The open group behind `open_info` in a restarted coordinator, without the samples that were under way."""
    admitted = info.get("admitted")
    now = time.time()
    restart = Attempt(number=0, rollout="", version=-1, asked=0, started_s=now, ended_s=now)
    restart.fault = "the coordinator was started again: what it held of the group was lost"
    return Group(
        group_id=group_id,
        admission=info["admission"],
        prompt=prompt,
        cursor=info["cursor"],
        admitted=Admission(**admitted) if admitted else None,
        attempts=[restart],
        trace_id=info.get("trace_id", ""),
    )


def accepted_group(group: Group, *, payload_bytes: int) -> QueuedGroup:
    """The facts of a complete group that stay in memory while the payload waits in Redis."""
    oldest = group.oldest_version
    assert oldest is not None
    return QueuedGroup(
        group_id=group.group_id,
        admission=group.admission,
        oldest_version=oldest,
        tokens=group.response_tokens,
        payload_bytes=payload_bytes,
        prompt_id=group.prompt.prompt_id,
        attempt=group.attempt,
        shaped_mean=sum(reward.shaped_reward for reward in group.rewards) / len(group.rewards),
        doomed=group.doomed,
        life=ledger_row(group, term="queued", ended=False) | {"queued_s": time.time()},
    )


def accepted_info(accepted: QueuedGroup) -> dict[str, Any]:
    """JSON facts of an accepted group, enough to rebuild the QueuedGroup."""
    return _shallow(accepted)


def ledger_row(group: Group, *, term: str, ended: bool = True) -> dict[str, Any]:
    """The row of an open group that ends under `term`, or with `ended` False the present row of a live group."""
    accs = [reward.acc for reward in group.rewards if reward.graded]
    admitted = group.admitted or Admission(time_s=-1.0, rank=-1, next_step=-1, epoch=-1, row=-1)
    samples = [group.samples[index] for index in sorted(group.samples)]
    rewards = group.rewards if len(group.rewards) == len(samples) else [None] * len(samples)
    return {
        "group_id": group.group_id,
        "admission": group.admission,
        "prompt_id": group.prompt.prompt_id,
        "data_source": group.prompt.data_source,
        "prompt_epoch": admitted.epoch,
        "prompt_row": admitted.row,
        "admitted_s": admitted.time_s,
        "admitted_rank": admitted.rank,
        "admitted_next_step": admitted.next_step,
        "predicted": admitted.predicted,
        "chosen": admitted.chosen,
        "attempt": group.attempt,
        "term": term,
        "fault": group.fault,
        "step": -1,
        "oldest_version": -1 if group.oldest_version is None else group.oldest_version,
        "samples": len(samples),
        "tokens": group.response_tokens,
        "lost_tokens": group.lost_tokens,
        "acc_mean": sum(accs) / len(accs) if accs else -1.0,
        "ended_s": time.time() if ended else -1.0,
        "trace_id": group.trace_id,
        "grading_s": group.grading_s,
        "graded_s": group.graded_s,
        "queued_s": -1.0,
        "assigned_s": -1.0,
        "attempts": [_shallow(attempt) for attempt in group.attempts],
        "completions": [_completion(sample, reward) for sample, reward in zip(samples, rewards, strict=True)],
    }


def queued_row(
    accepted: QueuedGroup, *, term: str, step: int, ended: bool = True, assigned_s: float = -1.0
) -> dict[str, Any]:
    """The row of an accepted group that ends under `term`, or that is live; `step` and `assigned_s` are -1 before the
    assignment."""
    return {
        **accepted.life,
        "group_id": accepted.group_id,
        "admission": accepted.admission,
        "prompt_id": accepted.prompt_id,
        "attempt": accepted.attempt,
        "term": term,
        "step": step,
        "oldest_version": accepted.oldest_version,
        "tokens": accepted.tokens,
        "assigned_s": assigned_s,
        "ended_s": time.time() if ended else -1.0,
    }


def _shallow(facts: Admission | Attempt | QueuedGroup) -> dict[str, Any]:
    """The fields by name; not `asdict`, which copies a whole row deeply."""
    return {name: getattr(facts, name) for name in facts.__slots__}


def _completion(sample: Sample, reward: Reward | None) -> dict[str, Any]:
    """The facts of one sample without its text; a sample that was not graded has no scores."""
    grade = reward if reward is not None and reward.graded else None
    return {
        "sample": sample.index,
        "rollout": sample.rollout_id,
        "tokens": sample.sampled_tokens,
        "finish_reason": sample.finish_reason,
        "versions": " ".join(
            f"{span.version.lineage}{span.version.number}:{span.start + 1}-{span.end}" for span in sample.spans
        ),
        "oldest_version": sample.oldest_version,
        "status": reward.status if reward else "",
        "raw_score": grade.raw_score if grade else None,
        "acc": grade.acc if grade else None,
        "extracted": grade.extracted[:EXTRACTED_CHARACTERS] if grade else None,
        "overlong_penalty": grade.overlong_penalty if grade else None,
        "shaped_reward": grade.shaped_reward if grade else None,
        "grader": f"{reward.grader} {reward.grader_version}".strip() if reward else "",
        "detail": reward.detail if reward else "",
        "parts": _parts(grade) if grade else None,
        **_episode(sample),
    }


def _episode(sample: Sample) -> dict[str, Any]:
    """What an episode has beyond a single answer, whose columns are empty."""
    if not sample.turns:
        return dict.fromkeys(("turns", "observed_tokens", "tools", "generated_s", "environment_s"))
    called = Counter(tool for turn in sample.turns for tool in turn.tools)
    return {
        "turns": len(sample.turns),
        "observed_tokens": len(sample.token_ids) - sample.sampled_tokens,
        "tools": json.dumps(dict(sorted(called.items())[:TOOLS]), ensure_ascii=False),
        "generated_s": sum(turn.generated_s for turn in sample.turns),
        "environment_s": sum(turn.answered_s for turn in sample.turns),
    }


def _parts(grade: Reward) -> str | None:
    """The components as one JSON object, so that the columns do not depend on the components' names."""
    kept = dict(sorted(grade.parts.items())[:PARTS])
    return json.dumps(kept, ensure_ascii=False) if kept else None
