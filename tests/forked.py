"""Processes forked from a server that has made the imports, so that one starts in milliseconds instead of seven seconds."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from services.learner.distributed.ending import end_process
from sluice.addresses import loopback_interface
from tests.free_port import free_port

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["services.learner.app", "sluice.weights.receiver", "sluice.weights.sender"])

_RANKS_END_S = 200.0
_OTHERS_END_S = 20.0
"""After one rank has failed, as torchrun would end the others."""


def run_ranks(main: Callable[[], None], *words: str, ranks: int, log: Path) -> None:
    """Runs `main` as every rank of a learner, with `words` as its arguments. AssertionError with the log if a rank fails."""
    port = free_port("127.0.0.1")
    started = [FORKED.Process(target=_rank, args=(main, words, rank, ranks, port, log)) for rank in range(ranks)]
    for process in started:
        process.start()
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


def _rank(main: Callable[[], None], words: tuple[str, ...], rank: int, ranks: int, port: int, log: Path) -> None:
    """What torchrun would make of a process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"GLOO_SOCKET_IFNAME": loopback_interface()}
    sys.argv[1:] = words
    with log.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    end_process(main)
