"""A task on Ray, seen from the launcher.

 who waits      for what                            unblocked by
 the follower   the end of a task's process         the actor's answer; Ray's word that the actor is dead; an actor that cannot
                                                    be reached for `node_timeout_s`
 stop, kill     an actor that has to carry it out   the end of the process; `node_timeout_s` later the task is lost
 `notice`       Ray to drain the node               ray_drain.py
An actor that is unavailable may answer again: Ray says so before it knows that a node is dead, and when a connection breaks.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import ActorUnavailableError, RayError

from sluice.launch.engines.port import LOST
from sluice.launch.engines.ray_host import Ended
from sluice.process.output import last_words, tail

AGAIN_S = 1.0
"""Pause before an actor that cannot be reached is asked again."""
LEFTOVERS_S = 5.0
"""Limit for what the process has left behind in its session to be killed."""


@dataclass(kw_only=True, slots=True, eq=False)
class RayTask:
    """Task of the port. Made inside the engine's event loop, where the follower runs until the place is given back."""

    name: str
    node: str
    node_id: str
    log_path: Path
    started_s: float
    host: Any
    """The handle of the Host that is the process's parent."""
    node_timeout_s: float
    why_dead: Callable[[RayError], Awaitable[str]]
    """What has become of the actor, by the error that Ray gives."""
    give_back: Callable[[], Awaitable[None]]
    killed: str = ""
    lost: str = ""
    _draining: str = ""
    _drained: asyncio.Event = field(default_factory=asyncio.Event)
    _end_seen: Ended | None = None
    _gave_up: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: asyncio.Task[None] | None = None
    _over: asyncio.Task[int] = field(init=False)

    def __post_init__(self) -> None:
        self._over = asyncio.create_task(self._follow(), name=f"follow-{self.name}")

    @property
    def alive(self) -> bool:
        """Task.alive."""
        return not self._over.done()

    async def wait(self) -> int:
        """Task.wait."""
        return await asyncio.shield(self._over)

    def drain(self, why: str) -> None:
        """Ray drains the node; `why` in words."""
        self._draining = self._draining or why
        self._drained.set()

    async def notice(self) -> str:
        """Task.notice."""
        await self._drained.wait()
        return self._draining

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Task.stop."""
        asking = asyncio.create_task(self._ask(self.host.stop, grace_s))
        hurrying = asyncio.create_task((at_once or asyncio.Event()).wait())
        try:
            await asyncio.wait([self._over, hurrying], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            if self.alive:
                self._end()
            await self.wait()
        finally:
            for each in (asking, hurrying):
                each.cancel()

    def kill(self, why: str) -> None:
        """Task.kill."""
        self.killed = why
        self._end()

    def log_tail(self) -> str:
        """Task.log_tail."""
        return tail(self.log_path) or (self._end_seen.tail if self._end_seen else "")

    def last_words(self) -> str:
        """Task.last_words."""
        if self._end_seen is not None and not tail(self.log_path):
            return self._end_seen.last_words
        return last_words(self.name, self.log_path)

    def _end(self) -> None:
        if self._ending is None and self.alive:
            self._ending = asyncio.create_task(self._kill(), name=f"kill-{self.name}")

    async def _kill(self) -> None:
        """Has the session killed; a node that does not do so is lost, whether it refuses or says nothing at all."""
        asking = asyncio.create_task(self._ask(self.host.kill))
        await asyncio.wait([self._over], timeout=self.node_timeout_s)
        self._gave_up.set()
        asking.cancel()

    async def _ask(self, method: Any, *arguments: object) -> None:
        """Has the actor do something; an actor that cannot is the follower's business."""
        with contextlib.suppress(RayError):
            await result(method.remote(*arguments))

    async def _follow(self) -> int:
        """Waits for the end of the process, then gives its place back; the exit code, or LOST."""
        ending = asyncio.create_task(self._ended())
        gave_up = asyncio.create_task(self._gave_up.wait())
        try:
            await asyncio.wait([ending, gave_up], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                limit = f"{self.node_timeout_s:.0f} s (launch.node_timeout_s)"
                self.lost = f"node {self.node} has not ended the process for {limit}"
                return LOST
            code = ending.result()
            if code != LOST:
                await asyncio.wait([asyncio.create_task(self._ask(self.host.stop, 0.0))], timeout=LEFTOVERS_S)
            if self._draining:
                self.lost = self._draining
                return LOST
            return code
        finally:
            for each in (ending, gave_up):
                each.cancel()
            await self.give_back()

    async def _ended(self) -> int:
        """The exit code, as soon as the actor says it; LOST when the actor is dead or silent for too long."""
        silent_since_s = None
        while True:
            asked_s = time.monotonic()
            try:
                ended: Ended = await result(self.host.wait.remote())
                self._end_seen = ended
                return ended.code
            except ActorUnavailableError:
                now_s = time.monotonic()
                if silent_since_s is None or now_s - asked_s > self.node_timeout_s:  # it was reached in between
                    silent_since_s = now_s
                if now_s - silent_since_s > self.node_timeout_s:
                    self.lost = (
                        f"node {self.node} has been silent for {self.node_timeout_s:.0f} s (launch.node_timeout_s)"
                    )
                    return LOST
                await asyncio.sleep(AGAIN_S)
            except RayError as error:
                self.lost = await self.why_dead(error)
                return LOST


async def result(reference: Any) -> Any:
    """What a call of an actor returns, without blocking the event loop; raises as the call did, or RayError."""
    return await asyncio.wrap_future(reference.future())
