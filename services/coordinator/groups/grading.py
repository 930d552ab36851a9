"""Grades one group on the reward service that has most room, and waits while the graders push back.

Every call counts against its member's capacity, those of training and of evaluation alike: no service is given more groups
than it said that it grades at once. Waits: for a reward with room, unblocked by finished calls and registrations; after
RESOURCE_EXHAUSTED (its queue is full, or the judge that it asks is away) with jittered backoff, at most
`coordinator.score_wait_s`; for the scores, at most the caller's limit a call.
"""

import random
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from services.coordinator.state.fleet import Fleet, Member, Role
from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.ports import RewardClient
from sluice.clock import Clock
from sluice.config.schema import Config
from sluice.errors import Overloaded, SluiceError

log = structlog.get_logger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0


class Grading:
    """Calls to reward services."""

    def __init__(self, *, config: Config, fleet: Fleet, rewards: RewardClient, clock: Clock) -> None:
        self._fleet, self._rewards, self._clock = fleet, rewards, clock
        self._patience_s = config.coordinator.score_wait_s

    async def score(
        self,
        *,
        group_id: str,
        prompt: PromptLike,
        samples: Sequence[Sample],
        timeout_s: float,
        taken_by: Callable[[str], None] = lambda _: None,
    ) -> list[Reward]:
        """Grades the samples, in order; `taken_by` hears which service has them, and an empty name when none has.

        Raises:
            Overloaded: the graders pushed back for all of `coordinator.score_wait_s`.
            SluiceError: the one call that failed in another way; a member that could not be reached is lost.
        """
        begun_s, pause_s = self._clock.now(), FIRST_PAUSE_S
        while True:
            member = await self._with_room()
            taken_by(member.service_id)
            try:
                return await self._rewards.score(
                    member, group_id=group_id, prompt=prompt, samples=samples, timeout_s=timeout_s
                )
            except Overloaded as error:
                waited_s = self._clock.now() - begun_s
                if waited_s + pause_s > self._patience_s:
                    raise Overloaded(
                        f"{error}; for {waited_s:.0f} s (coordinator.score_wait_s is {self._patience_s:g})"
                    ) from error
                log.warning("graders_push_back", group_id=group_id, waited_s=round(waited_s, 1), reason=str(error))
            except SluiceError as error:
                self._fleet.lose_if_unreachable(member, error)
                raise
            finally:
                taken_by("")
                member.outstanding -= 1
                self._fleet.changed.notify()
            await self._clock.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _with_room(self) -> Member:
        """Waits until a reward has room, and takes it."""
        while True:
            free = [member for member in self._fleet.of(Role.REWARD) if member.outstanding < member.capacity]
            member = self._fleet.least_loaded(free)
            if member is not None:
                member.outstanding += 1
                return member
            await self._fleet.changed.wait()
