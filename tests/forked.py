"""Processes forked from a server that has made the imports, so that one starts in milliseconds instead of seven seconds."""

import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from services.learner.distributed.ending import end_process
from sluice.addresses import loopback_interface
from tests.free_port import free_port

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["tests.forked_imports"])

_RANKS_END_S = 200.0
_OTHERS_END_S = 20.0
"""After one rank has failed, as torchrun would end the others."""


def run_ranks(main: Callable[[], None], *words: str, ranks: int, log: Path) -> None:
    """Runs `main` as every rank of a learner, with `words` as its arguments. AssertionError with the log if a rank fails."""
    place = _places(ranks) | {"GLOO_SOCKET_IFNAME": loopback_interface()}
    started = _start(partial(_with_arguments, main), words, ranks=ranks, environ=place, output=log)
    end_s = time.monotonic() + _RANKS_END_S
    try:
        for process in started:
            process.join(max(0.0, end_s - time.monotonic()))
            if process.exitcode != 0:
                end_s = min(end_s, time.monotonic() + _OTHERS_END_S)
    finally:
        for process in started:
            process.kill()
            process.join()
    codes = [process.exitcode for process in started]
    assert codes == [0] * ranks, f"{codes}: {log.read_text()[-4000:]}"


class ForkedProcess:
    """What a test asks of a process, in the words of asyncio.subprocess. Several ranks end as the first that failed."""

    def __init__(self, started: list[multiprocessing.process.BaseProcess], output: asyncio.StreamReader) -> None:
        self._started, self.stderr = started, output

    @property
    def returncode(self) -> int | None:
        """That of the first rank that failed, else 0; None while one runs."""
        return next((code for code in self.codes if code), None if None in self.codes else 0)

    @property
    def codes(self) -> list[int | None]:
        """That of each rank."""
        return [process.exitcode for process in self._started]

    async def wait(self) -> int:
        """The exit code, when all have ended."""
        for process in self._started:
            await _readable(process.sentinel)
            process.join()
        assert self.returncode is not None
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Output and errors; both are in the second."""
        output = await self.stderr.read()
        await self.wait()
        return b"", output

    def send_signal(self, number: int, *, rank: int | None = None) -> None:
        """To every rank, or to one."""
        for process in self._started if rank is None else [self._started[rank]]:
            assert process.pid is not None
            os.kill(process.pid, number)


@asynccontextmanager
async def forked(
    main: Callable[[list[str]], int | None],
    *words: str,
    ranks: int = 1,
    environ: Mapping[str, str] | None = None,
    piped: bool = False,
) -> AsyncIterator[ForkedProcess]:
    """Processes that run `main(words)` with `environ` besides this process's environment, killed in the end if they still run.

    What they write can be read as it comes where it is `piped`, else it is printed in the end.
    """
    reading, writing = FORKED.Pipe(duplex=False)
    place = _places(ranks) if ranks > 1 else {}
    started = _start(main, words, ranks=ranks, environ=place | dict(environ or {}), output=writing)
    writing.close()
    output = await _reader(reading)
    unread = None if piped else asyncio.ensure_future(output.read())
    try:
        yield ForkedProcess(started, output)
    finally:
        for each in started:
            each.kill()
            each.join()
        if unread is not None:
            print((await unread).decode(errors="replace"))


def _places(ranks: int) -> dict[str, str]:
    """What torchrun tells all ranks."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "WORLD_SIZE": str(ranks)}


def _start(
    main: Callable[[list[str]], int | None],
    words: Sequence[str],
    *,
    ranks: int,
    environ: Mapping[str, str],
    output: Connection | Path,
) -> list[multiprocessing.process.BaseProcess]:
    """A process a rank; one that is told its places is told which rank it is, too."""
    started: list[multiprocessing.process.BaseProcess] = []
    for rank in range(ranks):
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if "WORLD_SIZE" in environ else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **mine, **environ}
        started.append(FORKED.Process(target=_program, args=(main, [*words], environment, output)))
        started[-1].start()
    return started


def _with_arguments(main: Callable[[], None], words: list[str]) -> None:
    sys.argv[1:] = words
    main()


def _program(
    main: Callable[[list[str]], int | None], words: list[str], environ: Mapping[str, str], output: Connection | Path
) -> None:
    """What the interpreter would make of `python -m`."""
    os.environ.clear()
    os.environ |= environ
    with output.open("ab", buffering=0) if isinstance(output, Path) else output as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    end_process(lambda: main(words))


async def _reader(reading: Connection) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.dup(reading.fileno()), "rb")
    reading.close()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def _readable(descriptor: int) -> None:
    """Returns when the process is over whose sentinel that is."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
