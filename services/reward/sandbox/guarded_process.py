"""The service's handle on one guarded worker process: start it below its guard, send and receive frames, kill it.

Every wait has a limit: the caller's, and _REAP_LIMIT_S for a killed process to go. Every failure on the pipe is a `WorkerDied`.
"""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Self

import structlog

from services.reward.sandbox.frames import Frame, encode, receive
from sluice.clock import Clock
from sluice.process.child import module_command

log = structlog.get_logger(__name__)

START_LIMIT_S: Final = 60.0
"""Limit for a process to start and import a verifier: reasoning-gym takes 3 s on an idle core."""

_REAP_LIMIT_S = 5.0

_USUAL = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX|PYTHON[A-Z]+|"
    "(?i:(?:https?|all|no)_proxy)|SSL_CERT_(?:FILE|DIR)|(?:REQUESTS|CURL)_CA_BUNDLE|CUDA_[A-Z_]+|NVIDIA_[A-Z_]+|NLTK_DATA|"
    "XDG_[A-Z]+_(?:HOME|DIR)|HF_HOME|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE"
)
"""Names of variables that programs need to work and that hold no secret: a grader reads what it is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of every worker process."""

    timeout_s: float
    """Wall clock of one sample."""
    memory_bytes: int
    """Address space of each process of a grader."""
    file_bytes: int
    """Largest file that a grader can write."""
    max_processes: int
    """Processes and threads, the worker included, where the machine permits such a limit (isolation.py)."""
    recycle_after: int
    """Samples after which a process is replaced, so that a library's leaks stay small."""
    environment: Sequence[str] = ()
    """Variables of the service's environment that a grader sees besides the usual ones (`_USUAL`)."""
    network: bool = False
    """Whether a grader may use the network; False takes effect where the machine permits namespaces (isolation.py)."""


class WorkerDied(Exception):
    """The process ended, is frozen, or sent bytes that are no frame."""


class GuardedProcess:
    """One worker process below its guard. `start` makes it; a subclass names the MODULE that the process runs."""

    MODULE: ClassVar[str]

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits, clock: Clock) -> None:
        self._process = process
        self._limits, self._clock = limits, clock

    @classmethod
    async def start(cls, limits: Limits, clock: Clock) -> Self:
        """Starts a guard and the worker process below the guard, in a session of their own."""
        process = await asyncio.create_subprocess_exec(
            *(
                *module_command(cls.MODULE),
                str(os.getpid()),
                json.dumps(asdict(limits)),
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env=_environment(limits.environment),
        )
        return cls(process, limits, clock)

    @property
    def pid(self) -> int:
        """Process id of the guard."""
        return self._process.pid

    async def kill(self) -> None:
        """Ends the process and every process below; returns when none of these processes lives any more."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_REAP_LIMIT_S):
                await self._process.wait()
        except TimeoutError:  # the guard was stopped, or a process below is in an uninterruptible sleep
            log.warning("grader_not_reaped", pid=self.pid, waited_s=_REAP_LIMIT_S)
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def _within(self, limit_s: float, work: Coroutine[Any, Any, Frame]) -> Frame:
        """The result of `work`. Raises TimeoutError after `limit_s` on the injected clock."""
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
        if self._process.stdin.is_closing():  # uvloop has noticed the death and would raise RuntimeError
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


def _environment(more: Sequence[str]) -> dict[str, str]:
    """What a grader sees of this process' environment, with one thread a library and with this process' module path."""
    seen = {name: value for name, value in os.environ.items() if name in more or _USUAL.fullmatch(name)}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**seen, **threads, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
