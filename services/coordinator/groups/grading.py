"""Has samples graded: chooses the reward with the most room, waits out back-pressure, names the fault of a failed group.

A sample that could not be graded is a failure of its group, never a zero. A call that fails counts against the reward
(state/health.py). A refused request goes to every other reward; when one of them grades the samples, the refusals were
failures. `outstanding` counts the groups, of training and of evaluation, that a member grades now; the count never exceeds the
capacity that the member stated, as far as that is believed.

 who waits          for what                              unblocked by
 `fill`, `score`    a reward with room                    a finished call, a registration
 `fill`, `score`    a reward after RESOURCE_EXHAUSTED     jittered backoff, at most `coordinator.score_wait_s` from the
                                                          first one; no attempt is lost
 `fill`, `score`    the scores                            the reward, its loss, the caller's limit a call
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.coordinator.state.back_pressure import Patience
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Group, GroupFailed, PromptLike, Reward, Sample
from services.coordinator.state.group_trace import grading_of
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import RewardClient, TooLarge, WrongAnswer
from sluice.clock import Clock
from sluice.config.schema import Config
from sluice.errors import InvalidRequest, Overloaded, SluiceError
from sluice.telemetry.traces.context import within

_REASON: Final = {InvalidRequest: "reward_refused", Overloaded: "reward_overloaded", TooLarge: "too_large"}

log = structlog.get_logger(__name__)


@dataclass(kw_only=True, slots=True)
class Tries:
    """The tries that are left for the samples of one group, and the rewards that have failed."""

    left: int
    avoid: set[str] = field(default_factory=set)
    """These are asked again only when there is no other."""
    refused_by: dict[str, Member] = field(default_factory=dict)
    """These are not asked again."""


class Grading:
    """The second half of a group's path, grades; also the grades of evaluations."""

    def __init__(self, *, config: Config, fleet: Fleet, rewards: RewardClient, clock: Clock) -> None:
        self._config, self._fleet, self._rewards, self._clock = config, fleet, rewards, clock

    async def fill(self, group: Group) -> None:
        """Fills `group.rewards`. Raises GroupFailed after `max_attempts` without a grade for every sample, after the first
        attempt for a completion over `reward.max_answer_chars`, or when the graders have pushed back for `score_wait_s`.

        With `algorithm.min_group_size` so many grades are enough after the last attempt; the other rewards are not graded.
        """
        samples = [group.samples[index] for index in sorted(group.samples)]
        limit, tries = self._config.coordinator.score_timeout_s, self.tries()
        reason, fault = "reward_unavailable", ""

        def taken_by(service_id: str) -> None:
            group.grader = service_id

        group.grading_s = time.time()
        place = grading_of(group.trace_id, group.grading_s)
        while tries.left > 0:
            try:
                with within(place):
                    group.rewards = await self.score(
                        group_id=group.group_id,
                        prompt=group.prompt,
                        samples=samples,
                        timeout_s=limit,
                        tries=tries,
                        taken_by=taken_by,
                    )
                group.graded_s = time.time()
            except (InvalidRequest, Overloaded, TooLarge) as error:
                raise GroupFailed(reason=_REASON[type(error)], fault=str(error)) from error
            except SluiceError as error:
                reason = "reward_wrong_answer" if isinstance(error, WrongAnswer) else "reward_unavailable"
                fault = str(error)
                break
            ungraded = [reward for reward in group.rewards if not reward.graded]
            if not ungraded:
                return
            reason, fault = f"reward_{ungraded[0].status}", ungraded[0].detail
            log.warning("sample_not_graded", group_id=group.group_id, status=ungraded[0].status, why=ungraded[0].detail)
            if self._is_final(samples, group.rewards):
                break
            tries.left -= 1
        if not self._is_enough(group):
            raise GroupFailed(reason=reason, fault=fault)

    def tries(self, *, every: bool = False) -> "Tries":
        """As many attempts as `coordinator.max_attempts`; with `every` also one on each reward, for samples of which a
        failure costs more than one group."""
        rewards = len(self._fleet.of(Role.REWARD)) if every else 0
        return Tries(left=self._config.coordinator.max_attempts + rewards)

    async def score(
        self,
        *,
        group_id: str,
        prompt: PromptLike,
        samples: Sequence[Sample],
        timeout_s: float,
        tries: "Tries",
        taken_by: Callable[[str], None] = lambda _: None,
    ) -> list[Reward]:
        """Grades the samples, in order; calls `taken_by` with the name of the grading service, or with "" without one.

        A failed call uses up one of `tries` and counts against the reward; the next call goes to another reward where there
        is one.

        Raises:
            InvalidRequest: every reward refuses the request.
            Overloaded: the graders pushed back for all of `coordinator.score_wait_s`.
            TooLarge: no reward takes a request of this size.
            SluiceError: the error of the last try.
        """
        limit_s = self._config.coordinator.score_wait_s
        patience = Patience(self._clock, limit_s=limit_s, setting="coordinator.score_wait_s")
        while True:
            member = await self._with_room(tries)
            taken_by(member.service_id)
            try:
                rewards = await self._rewards.score(
                    member, group_id=group_id, prompt=prompt, samples=samples, timeout_s=timeout_s
                )
                self._have_graded(member, tries, group_id)
                return rewards
            except Overloaded as error:
                tries.avoid.add(member.service_id)
                waited_s = patience.refused(error)
                log.warning("graders_push_back", group_id=group_id, waited_s=round(waited_s, 1), reason=str(error))
            except InvalidRequest as error:
                log.warning("scoring_refused", group_id=group_id, reason=str(error))
                tries.refused_by[member.service_id] = member
                if not self._another_may_grade(tries):
                    raise
                continue
            except TooLarge:
                raise
            except SluiceError as error:
                log.warning("scoring_failed", group_id=group_id, reason=str(error))
                now_s = self._clock.now()
                if not self._fleet.lose_if_unreachable(member, error, now_s=now_s):
                    self._fleet.fail(member, str(error), now_s=now_s)
                tries.avoid.add(member.service_id)
                tries.left -= 1
                if tries.left <= 0:
                    raise
                continue
            finally:
                taken_by("")
                member.outstanding -= 1
                self._fleet.changed.notify()
            await patience.pause()

    def _have_graded(self, member: Member, tries: "Tries", group_id: str) -> None:
        self._fleet.succeed(member)
        for refuser in tries.refused_by.values():
            reason = f"it refused {group_id}, which another reward has graded"
            self._fleet.fail(refuser, reason, now_s=self._clock.now())
        tries.refused_by.clear()

    async def _with_room(self, tries: "Tries") -> Member:
        """Waits until a reward has room, and takes a place there. Raises InvalidRequest when all rewards have refused."""
        while True:
            free = [
                member for member in self._fleet.with_room(Role.REWARD) if member.service_id not in tries.refused_by
            ]
            member = self._fleet.least_loaded(free, avoid=tries.avoid)
            if member is not None:
                member.outstanding += 1
                return member
            if tries.refused_by and not self._another_may_grade(tries):
                raise InvalidRequest(f"refused by {', '.join(tries.refused_by)}: there is no other")
            await self._fleet.changed.wait()

    def _another_may_grade(self, tries: "Tries") -> bool:
        return self._fleet.another_may_serve(Role.REWARD, refused_by=tries.refused_by)

    def _is_final(self, samples: Sequence[Sample], rewards: Sequence[Reward]) -> bool:
        """Whether another try cannot help, because the completions are too long for every reward service."""
        longest = self._config.reward.max_answer_chars
        ungraded = [sample for sample, reward in zip(samples, rewards, strict=True) if not reward.graded]
        too_long = [len(sample.text) > longest for sample in ungraded]
        return all(too_long) if self._config.algorithm.min_group_size else any(too_long)

    def _is_enough(self, group: Group) -> bool:
        least = self._config.algorithm.min_group_size
        return least > 0 and sum(reward.graded for reward in group.rewards) >= least
