"""The service's handle on one environment process (environment_process.py): many questions at once, each with a limit.

A question over its limit ends the process, and with it every episode there. The end of the process, or bytes that are no
frame, is a `WorkerDied` for every question that waits; afterwards the handle says why in `ended`.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import structlog

from services.reward.sandbox.frames import Frame
from services.reward.sandbox.guarded_process import START_LIMIT_S, GuardedProcess, Limits, WorkerDied
from sluice.clock import Clock

log = structlog.get_logger(__name__)


class Refused(Exception):
    """The environment cannot be loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a loaded environment says of itself."""

    version: str
    scores: bool


class EnvironmentWorker(GuardedProcess):
    """One process. `start` makes it, `load` comes first."""

    MODULE = "services.reward.environments.environment_process"

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits, clock: Clock) -> None:
        super().__init__(process, limits, clock)
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._reading = asyncio.create_task(self._read(), name=f"environment-{process.pid}")
        self.ended = ""
        """Why the process is no more; empty while it serves."""
        self.episodes = 0
        """Episodes that have an object there."""

    async def load(self, environment: str, settings: Mapping[str, object]) -> Facts:
        """Imports the environment. Raises Refused, and WorkerDied."""
        try:
            frame = await self.ask(
                {"do": "load", "environment": environment, "settings": dict(settings)}, limit_s=START_LIMIT_S
            )
        except TimeoutError:
            raise Refused(f"{environment}: not loaded within {START_LIMIT_S:.0f} s") from None
        if "error" in frame:
            raise Refused(str(frame["error"]).removeprefix("load: "))
        return Facts(version=str(frame["ready"]), scores=bool(frame["scores"]))

    async def ask(self, question: Mapping[str, Any], *, limit_s: float) -> Frame:
        """The answer. Raises TimeoutError after `limit_s`, when the process has been ended, and WorkerDied."""
        if self.ended:
            raise WorkerDied(self.ended)
        number, answer = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = answer

        async def exchange() -> Frame:
            await self._send({**question, "id": number})
            return await answer

        try:
            return await self._within(limit_s, exchange())
        except TimeoutError:
            await self.end(f"a call of its process took longer than {limit_s:g} s")
            raise
        finally:
            del self._waiting[number]
            answer.cancel()

    async def end(self, why: str) -> None:
        """Ends the process; every question that waits is a WorkerDied."""
        if not self.ended:
            self.ended = why
            log.info("environment_process_ended", pid=self.pid, reason=why, episodes=self.episodes)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(WorkerDied(self.ended))
        if asyncio.current_task() is not self._reading:
            self._reading.cancel()
        await self.kill()

    async def _read(self) -> None:
        try:
            while True:
                frame = await self._receive()
                answer = self._waiting.get(frame["id"])
                if answer is not None and not answer.done():
                    answer.set_result(frame)
        except WorkerDied as death:
            await self.end(str(death).replace("grader process", "process of the environment"))
        except (TypeError, KeyError, RecursionError) as error:  # code in the worker found the pipe and wrote to it
            await self.end(f"its process sent what is not a frame: {error!r:.200}")
