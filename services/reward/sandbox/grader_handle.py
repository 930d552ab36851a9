"""The service's handle on one worker process (grader_process.py) and its guard: start, give a job, read outcomes, kill.

Every wait has a limit: START_LIMIT_S for the process to load a verifier, the caller's for one outcome, _REAP_LIMIT_S for
a killed process to go. Whatever goes wrong on the pipe is `WorkerDied`; the handle is then only good for `kill`.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog

from services.reward.ports import Completion, Grade, Job, Outcome
from services.reward.sandbox.frames import Frame, encode, receive
from sluice.clock import Clock

log = structlog.get_logger(__name__)

START_LIMIT_S: Final = 60.0
"""For a process to start and import its verifier: reasoning-gym takes 3 s on an idle core."""

_REAP_LIMIT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Of every worker process."""

    timeout_s: float
    """Wall clock of one sample."""
    memory_bytes: int
    """Address space, of each of its processes."""
    file_bytes: int
    """Largest file that it can write."""
    max_processes: int
    """Processes and threads, its own included; where the machine permits such a limit (isolation.py)."""
    recycle_after: int
    """Samples after which a process is replaced, so that what a library leaks stays small."""
    network: bool = False
    """Whether it may use the network; taken away where the machine permits namespaces (isolation.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A job that a process has taken on."""

    version: str
    """The verifier's."""
    whole: bool
    """Whether all completions are judged at once, and their outcomes come at the end."""


class WorkerDied(Exception):
    """The process ended, is frozen, or sent what is not a frame."""


class Refused(Exception):
    """The verifier cannot be loaded, so no sample of the job can be graded."""


class WorkerProcess:
    """One process, one job at a time. Make it with `start`."""

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits, clock: Clock) -> None:
        self._process = process
        self._limits, self._clock = limits, clock
        self.graded = 0
        """Samples given to it so far."""
        self._loaded: set[str] = set()
        """Verifiers it has imported."""

    @classmethod
    async def start(cls, limits: Limits, clock: Clock) -> "WorkerProcess":
        """Starts a guard and the process below it, in a session of their own."""
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "services.reward.sandbox.grader_process",
                str(os.getpid()),
                json.dumps(asdict(limits)),
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_environment(),
        )
        return cls(process, limits, clock)

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    async def begin(self, job: Job, completions: Sequence[Completion]) -> "Begun":
        """Hands over the completions and returns what the verifier says of itself.

        Raises:
            Refused: the verifier cannot be loaded, or not within START_LIMIT_S.
            WorkerDied: see there; also a process that has this verifier and does not take the job in the time of a sample.
        """
        loaded = job.verifier in self._loaded
        frame = {
            "verifier": job.verifier,
            "settings": dict(job.settings),
            "question": asdict(job.question),
            "completions": [asdict(completion) for completion in completions],
            "timeout_s": self._limits.timeout_s,
        }
        try:
            reply = await self._within(self._limits.timeout_s if loaded else START_LIMIT_S, self._exchange(frame))
        except TimeoutError:
            if loaded:
                raise WorkerDied(f"the grader process took no job for {self._limits.timeout_s:g} s") from None
            raise Refused(f"{job.verifier}: not loaded within {START_LIMIT_S:.0f} s") from None
        if "refused" in reply:
            raise Refused(f"{job.verifier}: {reply['refused']}")
        self._loaded.add(job.verifier)
        return Begun(version=reply["ready"], whole=reply["whole"])

    async def outcome(self, *, limit_s: float) -> Outcome:
        """What became of the next completion. Raises TimeoutError after `limit_s`, and WorkerDied."""
        self.graded += 1
        reply = await self._within(limit_s, self._receive())
        if "error" in reply:
            return Outcome(status="error", detail=reply["error"])
        if "busy" in reply:
            return Outcome(status="error", detail=reply["busy"], busy=True)
        if "timeout" in reply:
            return Outcome(status="timeout", detail=reply["timeout"])
        grade = Grade(**reply["grade"])
        return Outcome(status=grade.status, grade=grade)

    async def kill(self) -> None:
        """Ends the process and everything below it; returns when none of it lives any more."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_REAP_LIMIT_S):
                await self._process.wait()
        except TimeoutError:  # something stopped the guard, or the kernel holds one below in an uninterruptible sleep
            log.warning("grader_not_reaped", pid=self.pid, waited_s=_REAP_LIMIT_S)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _within(self, limit_s: float, work: Coroutine[Any, Any, Frame]) -> Frame:
        """What `work` returns. Raises TimeoutError after `limit_s` on the clock that was given."""
        working, alarm = asyncio.create_task(work), asyncio.create_task(self._clock.sleep(limit_s))
        try:
            await asyncio.wait((working, alarm), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise TimeoutError
            return working.result()
        finally:
            working.cancel()
            alarm.cancel()

    async def _exchange(self, frame: Frame) -> Frame:
        await self._send(frame)
        return await self._receive()

    async def _send(self, frame: Frame) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.is_closing():  # uvloop has noticed the death, and would raise RuntimeError
            raise WorkerDied("the grader process is gone")
        try:
            self._process.stdin.write(encode(frame))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WorkerDied("the grader process is gone") from error

    async def _receive(self) -> Frame:
        assert self._process.stdout is not None
        try:
            return await receive(self._process.stdout)
        except (asyncio.IncompleteReadError, ConnectionResetError) as error:
            raise WorkerDied("the grader process ended") from error
        except ValueError as error:  # a grader found the pipe and wrote to it
            raise WorkerDied(f"the grader process sent what is not a frame: {error}") from error


def _environment() -> dict[str, str]:
    """Ours, one thread a library, and the modules that we see."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
