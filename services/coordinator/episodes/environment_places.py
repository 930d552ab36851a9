"""Places on servers of environments: `outstanding` counts the episodes that are open, or being opened or closed.

 who waits   for what                                    unblocked by
 `take`      a place on a server that hosts the name     a closed episode, a registration, `patience_s` without any host
 a closing   the server's answer                         the answer, the server's loss, `answer_s`
The first in the line of each environment alone looks at the fleet's changes: thousands may wait.
"""

import asyncio
from collections import defaultdict

import structlog

from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import GroupFailed
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.placement import Tried
from services.coordinator.state.ports import EnvironmentClient
from sluice.clock import Clock
from sluice.errors import SluiceError

log = structlog.get_logger(__name__)


class EnvironmentPlaces:
    """Takes places, and closes episodes in the background to give the places back."""

    def __init__(
        self, *, fleet: Fleet, clock: Clock, environments: EnvironmentClient, patience_s: float, answer_s: float
    ) -> None:
        self._fleet, self._clock, self._environments = fleet, clock, environments
        self._patience_s, self._answer_s = patience_s, answer_s
        self._lines: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._closing: set[asyncio.Task[None]] = set()

    async def take(self, environment: str, tried: Tried) -> Member:
        """A place for one episode. Raises GroupFailed when no server hosts the environment, or all that do have refused."""
        async with self._lines[environment]:
            absent_since_s = None
            while True:
                room = [one for one in self._fleet.with_room(Role.ENVIRONMENT) if environment in one.environments]
                room = [one for one in room if one.service_id not in tried.refused_by]
                member = self._fleet.least_loaded(room, avoid=tried.failed_on)
                if member is not None:
                    member.outstanding += 1
                    return member
                hosts = self._hosts(environment)
                if tried.refused_by and all(host.service_id in tried.refused_by for host in hosts):
                    names = ", ".join(tried.refused_by)
                    raise GroupFailed(reason="environment_refused", fault=f"refused by {names}: there is no other")
                now_s = self._clock.now()
                absent_since_s = None if hosts else (now_s if absent_since_s is None else absent_since_s)
                if absent_since_s is not None and now_s - absent_since_s >= self._patience_s:
                    fault = (
                        f"no server hosts {environment!r} for {self._patience_s:g} s (coordinator.no_service_timeout_s)"
                    )
                    raise GroupFailed(reason="environment", fault=fault)
                await self._fleet.changed.wait(None if hosts else 1.0)

    def _hosts(self, environment: str) -> list[Member]:
        """Servers that host the environment and may have room some time."""
        return [
            one
            for one in self._fleet.of(Role.ENVIRONMENT, state=None)
            if environment in one.environments and not one.barred and one.state is not State.DRAINING
        ]

    def give_back(self, member: Member) -> None:
        """Gives a place back."""
        member.outstanding -= 1
        self._fleet.changed.notify()

    def close(self, member: Member, episode_id: str) -> None:
        """Closes an episode in the background, then gives its place back; the lease ends what cannot be closed."""
        task = asyncio.create_task(self._close(member, episode_id), name=f"close {episode_id}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, member: Member, episode_id: str) -> None:
        try:
            async with asyncio.timeout(self._answer_s):
                await self._environments.close(member, episode_id=episode_id, timeout_s=self._answer_s)
        except (SluiceError, TimeoutError) as error:
            log.info("episode_not_closed", episode_id=episode_id, service_id=member.service_id, reason=str(error))
        finally:
            self.give_back(member)

    async def drain(self, *, grace_s: float) -> None:
        """Waits until the episodes that are being closed are closed, `grace_s` at most."""
        if self._closing:
            await asyncio.wait(set(self._closing), timeout=grace_s)
