"""Fills a group with rewards: a sample that could not be graded is a failure of the group, never a zero.

Waits: for a reward service with room, unblocked by finished calls and registrations; for the scores, at most
`score_timeout_s` a try.
"""

import structlog

from services.coordinator.fleet import Fleet, Member, Role
from services.coordinator.model import Group, GroupFailed
from services.coordinator.ports import RewardClient
from sluice.config.schema import Config
from sluice.errors import InvalidRequest, SluiceError

log = structlog.get_logger(__name__)


class Scoring:
    """The second half of a group's path."""

    def __init__(self, *, config: Config, fleet: Fleet, rewards: RewardClient) -> None:
        self._config, self._fleet, self._rewards = config, fleet, rewards

    async def fill(self, group: Group) -> None:
        """Fills `group.rewards`. Raises GroupFailed after `max_attempts` without a grade for every sample.

        With `algorithm.min_group_size` that many are enough in the end; then some rewards are not graded.
        """
        samples = [group.samples[index] for index in sorted(group.samples)]
        limit = self._config.coordinator.score_timeout_s
        reason, fault = "reward_unavailable", ""
        for _ in range(self._config.coordinator.max_attempts):
            member = await self._reward()
            group.grader = member.service_id
            try:
                group.rewards = await self._rewards.score(
                    member, group_id=group.group_id, prompt=group.prompt, samples=samples, timeout_s=limit
                )
            except InvalidRequest as error:
                log.warning("scoring_refused", group_id=group.group_id, reason=str(error))
                raise GroupFailed(reason="reward_refused", fault=str(error)) from error
            except SluiceError as error:
                log.warning("scoring_failed", group_id=group.group_id, reason=str(error))
                self._fleet.lose_if_unreachable(member, error)
                fault = str(error)
                continue
            finally:
                group.grader = ""
                member.outstanding -= 1
                self._fleet.changed.notify()
            ungraded = [reward for reward in group.rewards if not reward.graded]
            if not ungraded:
                return
            reason, fault = f"reward_{ungraded[0].status}", ungraded[0].detail
            log.warning("sample_not_graded", group_id=group.group_id, status=ungraded[0].status, why=ungraded[0].detail)
        if not self._is_enough(group):
            raise GroupFailed(reason=reason, fault=fault)

    def _is_enough(self, group: Group) -> bool:
        least = self._config.algorithm.min_group_size
        return least > 0 and sum(reward.graded for reward in group.rewards) >= least

    async def _reward(self) -> Member:
        """Waits until a reward has room."""
        while True:
            free = [member for member in self._fleet.of(Role.REWARD) if member.outstanding < member.capacity]
            member = self._fleet.least_loaded(free)
            if member is not None:
                member.outstanding += 1
                return member
            await self._fleet.changed.wait()
