"""Processes of services under test, each ended with everything it started."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil

from services.learner import __main__ as learner_program
from tests.forked import ForkedProcess, forked

Process = asyncio.subprocess.Process

ROOT = Path(__file__).parents[2]
ENVIRON = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
END_S = 30.0


@asynccontextmanager
async def running(*command: str, environ: Mapping[str, str] | None = None, **pipes: Any) -> AsyncIterator[Process]:
    """A process, killed in the end if it still runs."""
    process = await asyncio.create_subprocess_exec(*command, env=ENVIRON | dict(environ or {}), cwd=ROOT, **pipes)
    try:
        yield process
    finally:
        if process.returncode is None:
            for each in _with_descendants(process):
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself since it was listed
                    each.kill()
        async with asyncio.timeout(END_S):
            await process.communicate()


def _with_descendants(process: Process) -> list[psutil.Process]:
    """A process after all that descend from it; none when it was reaped, which a thread of asyncio does before it tells."""
    try:
        started = psutil.Process(process.pid)
        return [*started.children(recursive=True), started]
    except psutil.NoSuchProcess:
        return []


def learner(
    coordinator: str,
    *words: str,
    main: Callable[[list[str]], int | None] = learner_program.main,
    ranks: int = 1,
    environ: Mapping[str, str] | None = None,
    piped: bool = False,
) -> AbstractAsyncContextManager[ForkedProcess]:
    """A learner, forked from a process that has made its imports."""
    return forked(main, *flags(coordinator), *words, ranks=ranks, environ=environ, piped=piped)


def learner_under_torchrun(coordinator: str, *script: str, **how: Any) -> AbstractAsyncContextManager[Process]:
    """Two ranks of `script`, the learner where it is empty, as somebody would start them by hand."""
    return running(sys.executable, *TORCHRUN, *(script or ("-m", "services.learner")), *flags(coordinator), **how)


def flags(coordinator: str) -> tuple[str, ...]:
    """Of a service that finds its ports itself."""
    return ("--coordinator", coordinator, "--port", "0", "--metrics-port", "0")


async def exit_code(process: Process | ForkedProcess, *, within_s: float = 120.0) -> int:
    """Waits for the end; what the process writes meanwhile has to fit into its pipes."""
    async with asyncio.timeout(within_s):
        return await process.wait()
