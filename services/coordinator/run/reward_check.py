"""The check before training: gold answers must score right; other prompts' gold answers, empty answers and garbage wrong.
A grader that fails this check would train the model on noise for hours.

Every reward that is ready is asked. One that fails beside one that passes does not end the start: it gets no work when its
grades are wrong, and its failure counts (state/health.py) when it did not answer.

 who waits        for what                                 unblocked by
 `check_reward`   every reward's grades                    the answers, `coordinator.score_timeout_s` each
 `check_reward`   a reward, when none has answered well    a registration, launch.ready_timeout_s
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from services.coordinator.run.absences import Absences
from services.coordinator.state.group import PromptLike, Reward, Sample, Span
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import RewardClient
from services.coordinator.state.run_context import RunContext
from sluice.errors import ConfigError, NotReady, SluiceError
from sluice.gold_answers import GARBAGE, as_a_model_writes, gold_forms
from sluice.policy_version import PolicyVersion

log = structlog.get_logger(__name__)

AGAIN_AFTER_S: Final = 2.0
"""The pause before the rewards are asked again."""
_FEWEST_SHUFFLED = 2
"""Fewest prompts, graded with another prompt's gold answer, that can refuse a grader: two prompts may share an answer by
chance."""
_VERDICTS_SHOWN = 2


@dataclass(kw_only=True, slots=True)
class CheckedGrader:
    """The check's counts for one grader on one data source."""

    grader: str
    data_source: str
    gold: int = 0
    """Prompts whose gold answer was right, which is all prompts, because the check ends at the first wrong one."""
    shuffled: int = 0
    """Prompts that were graded with another prompt's gold answer."""
    shuffled_right: int = 0
    garbage: int = 0
    """Garbage answers, all of them graded as wrong."""
    samples: int = 0
    wall_s: float = 0.0

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.grader} for {self.data_source}: gold {self.gold} of {self.gold} right, other prompts' gold "
            f"{self.shuffled_right} of {self.shuffled}, garbage 0 of {self.garbage}; "
            f"{1000 * self.wall_s / self.samples:.1f} ms a sample"
        )


async def check_reward(run: RunContext, *, rewards: RewardClient, prompts: Sequence[PromptLike]) -> list[CheckedGrader]:
    """Checks every grader and data source on every reward; returns the counts of a reward that passed.

    Rewards that did not answer are asked again, `coordinator.max_attempts` times in all. Without a reward that passes raises
    ConfigError with the prompt, its gold answer and the grader's verdict, or the error of a call.
    """
    left = run.config.coordinator.max_attempts
    while True:
        members = await _ready(run)
        found = await asyncio.gather(*(_outcome(run, member, rewards, prompts) for member in members))
        failed = {member: one for member, one in zip(members, found, strict=True) if isinstance(one, SluiceError)}
        if passed := [one for one in found if not isinstance(one, SluiceError)]:
            _put_aside(run, failed)
            return passed[0]
        left -= 1
        final = [error for error in failed.values() if isinstance(error, ValueError)]
        if len(final) == len(failed) or not left:
            raise [*final, *failed.values()][0]
        for member, error in failed.items():
            log.warning("reward_check_repeated", service_id=member.service_id, reason=str(error))
            run.fleet.lose_if_unreachable(member, error, now_s=run.clock.now())
        await run.clock.sleep(AGAIN_AFTER_S)


async def _ready(run: RunContext) -> list[Member]:
    """The rewards that are ready. Raises NotReady when there is none for `launch.ready_timeout_s`."""
    limit_s = run.config.launch.ready_timeout_s
    absences = Absences(run.clock)
    while not (members := run.fleet.of(Role.REWARD)):
        missing = {Role.REWARD.value} - run.places.awaited()
        if absences.look(missing, limit_s=limit_s):
            raise NotReady(f"reward check: no reward service was ready for {limit_s:g} s (launch.ready_timeout_s)")
        await run.fleet.changed.wait(1.0)
    return members


async def _outcome(
    run: RunContext, member: Member, rewards: RewardClient, prompts: Sequence[PromptLike]
) -> list[CheckedGrader] | SluiceError:
    """One reward's counts, or its fault."""
    limit_s = run.config.coordinator.score_timeout_s
    try:
        return await check_member(member, rewards=rewards, prompts=prompts, timeout_s=limit_s)
    except SluiceError as error:
        return error


def _put_aside(run: RunContext, failed: Mapping[Member, SluiceError]) -> None:
    """Names the rewards that failed beside one that passed; wrong grades never train anything."""
    for member, error in failed.items():
        now_s = run.clock.now()
        log.warning("reward_check_failed", service_id=member.service_id, reason=str(error))
        if isinstance(error, ConfigError):
            run.fleet.bar(member, f"another reward passed the check before training, this one not: {error}")
        elif not run.fleet.lose_if_unreachable(member, error, now_s=now_s):
            run.events.emit("warning", f"reward check: {member.service_id} gave no grades: {error}")
            run.fleet.fail(member, str(error), now_s=now_s)


async def check_member(
    member: Member, *, rewards: RewardClient, prompts: Sequence[PromptLike], timeout_s: float
) -> list[CheckedGrader]:
    """Checks every grader and data source of one reward. Raises ConfigError when its grades are wrong, and errors of calls."""
    seen: dict[tuple[str, str], CheckedGrader] = {}
    for prompt in prompts:
        gold, garbage, others = gold_forms(prompt.ground_truth), list(GARBAGE), _of_another(prompt, prompts)
        texts = [*gold, *garbage, *others]
        started = time.monotonic()
        results = await rewards.score(
            member,
            group_id=f"check-{prompt.prompt_id}",
            prompt=prompt,
            samples=[_as_sample(index, text) for index, text in enumerate(texts)],
            timeout_s=timeout_s,
        )
        wall_s = time.monotonic() - started
        _refuse(prompt, gold=results[: len(gold)], garbage=results[len(gold) : len(gold) + len(garbage)])
        grader = f"{results[0].grader} {results[0].grader_version}".strip()
        row = seen.setdefault(
            (grader, prompt.data_source), CheckedGrader(grader=grader, data_source=prompt.data_source)
        )
        row.gold += 1
        row.garbage += len(garbage)
        row.shuffled += bool(others)
        row.shuffled_right += any(result.acc == 1 for result in results[len(gold) + len(garbage) :])
        row.samples += len(texts)
        row.wall_s += wall_s
    for row in seen.values():
        if row.shuffled >= _FEWEST_SHUFFLED and row.shuffled_right == row.shuffled:
            raise ConfigError(
                f"reward check: grader {row.grader!r} for data_source {row.data_source!r} scores the gold answers of other "
                f"prompts as right, {row.shuffled} of {row.shuffled}; it does not look at the ground truth: let another "
                "grader come first in reward.routes"
            )
    return list(seen.values())


def _refuse(prompt: PromptLike, *, gold: Sequence[Reward], garbage: Sequence[Reward]) -> None:
    name = f"grader {gold[0].grader!r} for data_source {prompt.data_source!r}"
    if not any(result.graded and result.acc == 1 for result in gold):
        written = as_a_model_writes(prompt.ground_truth)
        as_written = "" if written == prompt.ground_truth else f", which a model writes as {written[:80]!r},"
        verdicts = dict.fromkeys(f"{result.status} {(result.extracted or result.detail)[:200]!r}" for result in gold)
        said = "; ".join([*verdicts][:_VERDICTS_SHOWN])
        raise ConfigError(
            f"reward check: {name} scores the gold answer {prompt.ground_truth[:80]!r}{as_written} of prompt "
            f"{prompt.text[:80]!r} as wrong ({said}); fix the data's ground_truth or route the data_source to "
            "another grader with reward.routes"
        )
    if any(result.acc == 1 for result in garbage):
        raise ConfigError(
            f"reward check: {name} scores an empty or garbage answer to {prompt.text[:80]!r} as right; "
            "route the data_source to another grader with reward.routes"
        )


def _of_another(prompt: PromptLike, prompts: Sequence[PromptLike]) -> list[str]:
    """The gold answer of another prompt of the same data source, in every form; empty where all answers are equal."""
    for other in prompts:
        if other.data_source == prompt.data_source and other.ground_truth != prompt.ground_truth:
            return gold_forms(other.ground_truth)
    return []


def _as_sample(index: int, text: str) -> Sample:
    span = Span(version=PolicyVersion(lineage="", number=0), start=0, end=1)
    one = np.zeros(1)
    return Sample(
        index=index,
        token_ids=one.astype(np.int32),
        logprobs=one.astype(np.float32),
        spans=(span,),
        finish_reason="stop",
        text=text,
        rollout_id="",
        seed=0,
    )
