"""Fills a group with rewards: a sample that could not be graded is a failure of the group, never a zero.

Waits: for its grades (grading.py). Graders that push back make it wait and cost it no attempt.
"""

from collections.abc import Sequence

import structlog

from services.coordinator.groups.grading import Grading
from services.coordinator.state.group import Group, GroupFailed, Reward, Sample
from sluice.config.schema import Config
from sluice.errors import InvalidRequest, Overloaded, SluiceError

log = structlog.get_logger(__name__)


class Scoring:
    """The second half of a group's path."""

    def __init__(self, *, config: Config, grading: Grading) -> None:
        self._config, self._grading = config, grading

    async def fill(self, group: Group) -> None:
        """Fills `group.rewards`. Raises GroupFailed after `max_attempts` without a grade for every sample, after one when a
        completion is over `reward.max_answer_chars`, or when the graders have pushed back for `score_wait_s`.

        With `algorithm.min_group_size` that many grades are enough in the end; then some rewards are not graded.
        """
        samples = [group.samples[index] for index in sorted(group.samples)]
        limit = self._config.coordinator.score_timeout_s
        reason, fault = "reward_unavailable", ""

        def taken_by(service_id: str) -> None:
            group.grader = service_id

        for _ in range(self._config.coordinator.max_attempts):
            try:
                group.rewards = await self._grading.score(
                    group_id=group.group_id, prompt=group.prompt, samples=samples, timeout_s=limit, taken_by=taken_by
                )
            except InvalidRequest as error:
                log.warning("scoring_refused", group_id=group.group_id, reason=str(error))
                raise GroupFailed(reason="reward_refused", fault=str(error)) from error
            except Overloaded as error:
                raise GroupFailed(reason="reward_overloaded", fault=str(error)) from error
            except SluiceError as error:
                log.warning("scoring_failed", group_id=group.group_id, reason=str(error))
                fault = str(error)
                continue
            ungraded = [reward for reward in group.rewards if not reward.graded]
            if not ungraded:
                return
            reason, fault = f"reward_{ungraded[0].status}", ungraded[0].detail
            log.warning("sample_not_graded", group_id=group.group_id, status=ungraded[0].status, why=ungraded[0].detail)
            if self._is_final(samples, group.rewards):
                break
        if not self._is_enough(group):
            raise GroupFailed(reason=reason, fault=fault)

    def _is_final(self, samples: Sequence[Sample], rewards: Sequence[Reward]) -> bool:
        """Whether no other try could help: completions are too long for every one."""
        longest = self._config.reward.max_answer_chars
        ungraded = [sample for sample, reward in zip(samples, rewards, strict=True) if not reward.graded]
        too_long = [len(sample.text) > longest for sample in ungraded]
        return all(too_long) if self._config.algorithm.min_group_size else any(too_long)

    def _is_enough(self, group: Group) -> bool:
        least = self._config.algorithm.min_group_size
        return least > 0 and sum(reward.graded for reward in group.rewards) >= least
