"""Finds and kills processes of this machine that live and do not answer: stopped, deadlocked, in an endless loop.
keeper.py sees the exits, also of the processes killed here, and starts each process again.

 who looks               at what                                                    how often
 `FrozenWatch.services`  the age of each heartbeat, in the coordinator's status      with every status
 `FrozenWatch.probe`     whether the coordinator or Redis answers within a deadline  once a second
A process that has never answered since its start is still starting: only `launch.ready_timeout_s` bounds that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from sluice.clock import Clock
from sluice.config.schema import LaunchConfig

LOOK_EVERY_S = 1.0


class Watched(Protocol):
    """A process of this machine (processes.py)."""

    @property
    def started_s(self) -> float: ...
    @property
    def alive(self) -> bool: ...
    def kill(self, why: str, /) -> None: ...


class Kept(Protocol):
    """The processes by service (keeper.py)."""

    def child(self, name: str, /) -> Watched | None: ...


@dataclass(kw_only=True, slots=True)
class Lookout:
    """How long a process has been silent while this launcher was looking: time without looks does not count.

    So a launcher that was stopped or whose machine slept does not kill processes that only seem silent when it goes on.
    """

    limit_s: float
    _from_s: float = float("-inf")
    _looked_s: float = float("-inf")

    def look(self, now_s: float) -> None:
        """Records a look. After a gap without looks the count of silence begins anew."""
        if now_s - self._looked_s > max(self.limit_s / 2, 3 * LOOK_EVERY_S):
            self._from_s = now_s
        self._looked_s = now_s

    def silent_s(self, heard_s: float) -> float:
        """Seconds of silence at the last look, for a process that was last heard at `heard_s`."""
        return self._looked_s - max(heard_s, self._from_s)


class FrozenWatch:
    """Looks at all processes of one launcher and kills the frozen ones."""

    def __init__(self, *, launch: LaunchConfig, keeper: Kept, clock: Clock) -> None:
        self._launch, self._keeper, self._clock = launch, keeper, clock
        self._heartbeats = Lookout(limit_s=launch.frozen_timeout_s)

    def services(self, heartbeat_ages_s: Mapping[str, float], *, asked_s: float) -> None:
        """Ends each service whose heartbeats have stopped; the ages are the coordinator's answer to a call at `asked_s`."""
        self._heartbeats.look(asked_s)
        for name, age_s in heartbeat_ages_s.items():
            child, heard_s = self._keeper.child(name), asked_s - age_s
            if child is not None and heard_s > child.started_s:
                self._judge(child, self._heartbeats.silent_s(heard_s), "frozen_timeout_s")
            elif child is not None:  # the heartbeat came from the service's former process
                self._judge(child, self._heartbeats.silent_s(child.started_s), "ready_timeout_s")

    async def probe(
        self, running: Callable[[], Watched | None], answers: Callable[[], Awaitable[bool]], *, ready: Watched
    ) -> None:
        """Ends the `running` process when `answers` has been false for too long. `ready` has answered. Runs until cancelled."""
        limit_s = self._launch.frozen_timeout_s
        lookout, heard_s, known = Lookout(limit_s=limit_s), self._clock.now(), ready
        while True:
            lookout.look(self._clock.now())
            child = running()
            if child is not None and await self._answered(answers, within_s=limit_s / 4):
                heard_s, known = self._clock.now(), child
            elif child is not None and child is known:
                self._judge(child, lookout.silent_s(heard_s), "frozen_timeout_s")
            elif child is not None:
                self._judge(child, lookout.silent_s(child.started_s), "ready_timeout_s")
            await self._clock.sleep(LOOK_EVERY_S)

    async def _answered(self, answers: Callable[[], Awaitable[bool]], *, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await answers()
        except TimeoutError:
            return False

    def _judge(self, child: Watched, silent_s: float, key: Literal["frozen_timeout_s", "ready_timeout_s"]) -> None:
        limit_s = getattr(self._launch, key)
        if key == "ready_timeout_s" and self._launch.learner_nnodes > 1:
            limit_s *= 2  # the machines of the learner may need the first half to meet
        if silent_s > limit_s and child.alive:
            child.kill(f"did not answer for {silent_s:.0f} s (launch.{key}) and was killed")
