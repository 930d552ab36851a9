"""The groups that a run recorded with their texts, as requests to a reward service. Only reads.

A run keeps the texts of groups that were handed to the learner, as long as a checkpoint can ask for their batch. For all
other groups the ledger has scores and no text.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.reward.rescore.score_comparison import Judged
from sluice.errors import NotFound, SluiceError
from sluice.report.ledger_tables import select
from sluice.run_dir.batch_file import batch_files, batch_path, payloads_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2, reward_pb2

log = structlog.get_logger(__name__)

_STATUS = {
    common_pb2.REWARD_STATUS_OK: "ok",
    common_pb2.REWARD_STATUS_UNPARSED: "unparsed",
    common_pb2.REWARD_STATUS_TIMEOUT: "timeout",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedGroup:
    """One group with its scores of the run."""

    request: reward_pb2.ScoreRequest
    """The request to a reward service for the group."""
    judged: Sequence[Judged]
    """The run's judgements; `judged[i]` belongs to `request.items[i]`."""


def batch_steps(run_dir: Path) -> list[int]:
    """The steps whose batch is kept, in order. Raises NotFound when no batch is kept."""
    steps = sorted(step for step, path in batch_files(run_dir) if path == batch_path(run_dir, step))
    if not steps:
        raise NotFound(
            f"{run_dir}/batches: holds no batch; a run writes one for every step, with the texts of its groups"
        )
    return steps


def read_batch(run_dir: Path, step: int) -> list[RecordedGroup]:
    """The groups of a batch; empty when a live run has removed the batch meanwhile. Raises SluiceError."""
    path = batch_path(run_dir, step)
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        log.warning("batch_removed", step=step, why="no checkpoint of the run can ask for it any more")
        return []
    stored = StoredGroups()
    try:
        groups = [stored.unpack(payload) for payload in payloads_of(body)]
    except (struct.error, ValueError) as error:
        raise SluiceError(f"batch {step}: {path} is damaged: {error}") from error
    return [_recorded(group) for group in groups]


def not_covered(run_dir: Path, steps: Sequence[int]) -> Counter[str]:
    """The number of ended groups outside the batches of `steps`, by ledger term; the texts of these groups are gone.

    Empty for a run that has not written a ledger row yet.
    """
    try:
        _, rows = select(run_dir, "SELECT term, step, count(*) FROM groups GROUP BY term, step")
    except NotFound:
        return Counter()
    covered = set(steps)
    counts: Counter[str] = Counter()
    for term, step, count in rows:
        if step not in covered:
            counts[term] += count
    return counts


def _recorded(group: common_pb2.Group) -> RecordedGroup:
    return RecordedGroup(
        request=reward_pb2.ScoreRequest(
            group_id=group.group_id,
            data_source=group.prompt.data_source,
            prompt_text=group.prompt.text,
            ground_truth=group.prompt.ground_truth,
            extra_info_json=group.prompt.extra_info_json,
            items=list(_items(group)),
        ),
        judged=[_judged(reward) for reward in group.rewards],
    )


def _items(group: common_pb2.Group) -> Iterator[reward_pb2.ScoreItem]:
    """The items of a request; the length of a completion is its packed ids' bytes / 4."""
    for sample in group.samples:
        yield reward_pb2.ScoreItem(
            index=sample.index,
            text=sample.text,
            response_tokens=len(sample.token_ids) // 4,
            finish_reason=sample.finish_reason,
        )


def _judged(reward: common_pb2.SampleReward) -> Judged:
    return Judged(
        status=_STATUS.get(reward.status, "error"),
        raw_score=reward.raw_score,
        acc=reward.acc,
        shaped_reward=reward.shaped_reward,
        extracted=reward.extracted,
        detail=reward.detail,
        grader=f"{reward.grader} {reward.grader_version}".strip(),
    )
