"""The ranks of a learner that has one machine: started together, ended together. Imports no torch.

torchrun would do the same after it has imported torch, which every start of the learner, and so every recovery, would wait
for (docs/adr/0020-recovery.md). Several machines need torchrun's rendezvous (node.py).

 who waits    for what                               unblocked by
 `run_ranks`  the end of any rank                    that rank's end, SIGTERM or SIGINT
 `run_ranks`  the others, once one has failed        their end; SIGKILL after LOST_S
 `run_ranks`  all ranks, after SIGTERM or SIGINT     their end; SIGKILL after LEAVE_S
The kernel kills the ranks when this process is killed: one that lived on would train beside the ranks that replace it.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog

from sluice.addresses import loopback
from sluice.process import exit_codes
from sluice.process.child import armed

log = structlog.get_logger(__name__)

STORE_FD: Final = "SLUICE_STORE_FD"
"""The descriptor on which rank 0 listens as the ranks' store at MASTER_ADDR, MASTER_PORT; empty for the other ranks. Handed on
open, so that nobody else can have the port meanwhile."""
LOST_S: Final = 5.0
"""Chosen: a rank sees the closed sockets of a dead one at once, and has nothing to save without that one."""
LEAVE_S: Final = 30.0
"""torchrun's limit; the launcher's own (`launch.grace_s`) comes first."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rank:
    number: int
    process: "subprocess.Popen[bytes]"


class _Stopped(BaseException):
    """A signal asks this process to end; raised wherever the process is."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def run_ranks(command: Sequence[str], *, count: int) -> int:
    """Runs `command` as `count` ranks; returns 0, 1, BAD_USAGE where the first rank to fail ended so, or 128 + a signal."""
    ranks: list[_Rank] = []
    for signum in _SIGNALS:
        signal.signal(signum, _stop)
    limit_s = LOST_S
    try:
        with _listening() as store:
            ranks.extend(_start(command, number, count, store) for number in range(count))
        return _until_one_fails(ranks)
    except _Stopped as stopped:
        limit_s = LEAVE_S
        return 128 + stopped.signum
    finally:
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        _end(ranks, within_s=limit_s)


def _stop(signum: int, _: object) -> NoReturn:
    for other in _SIGNALS:  # a second one would break off the end of the ranks
        signal.signal(other, signal.SIG_IGN)
    raise _Stopped(signum)


def _listening() -> socket.socket:
    here = loopback()
    return socket.create_server((here, 0), family=socket.AF_INET6 if ":" in here else socket.AF_INET)


def _start(command: Sequence[str], number: int, count: int, store: socket.socket) -> _Rank:
    leads = number == 0
    host, port = store.getsockname()[:2]
    place = {"MASTER_ADDR": host, "MASTER_PORT": str(port), STORE_FD: str(store.fileno()) if leads else ""}
    process = subprocess.Popen(
        [*armed(signal.SIGKILL), *command],
        env=_environment(number, count, os.environ) | place,
        start_new_session=True,  # the launcher's signals come through this process alone, once
        pass_fds=[store.fileno()] if leads else [],
    )
    return _Rank(number=number, process=process)


def _environment(number: int, count: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would tell a rank."""
    ranks = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    defaults = {"OMP_NUM_THREADS": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    return defaults | dict(inherited) | ranks


def _until_one_fails(ranks: Sequence[_Rank]) -> int:
    """Returns when all ranks have ended well, or one has not."""
    running = {rank.process.pid: rank for rank in ranks}
    while running:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # looks only: Popen.wait takes the child
        assert ended is not None
        rank = running.pop(ended.si_pid, None)
        if rank is None:  # a child that this process had before its program, or an orphan of a container
            os.waitpid(ended.si_pid, 0)
            continue
        if code := rank.process.wait():
            if code < 0:  # otherwise the rank itself has said why
                how = signal.Signals(-code).name
                log.warning("rank_killed", rank=rank.number, signal=how, consequence="all ranks of the learner end")
            return exit_codes.BAD_USAGE if code == exit_codes.BAD_USAGE else 1
    return 0


def _end(ranks: Sequence[_Rank], *, within_s: float) -> None:
    """Ends the ranks that are left."""
    left = [rank.process for rank in ranks if rank.process.poll() is None]
    for process in left:
        process.terminate()
    until_s = time.monotonic() + within_s
    for process in left:
        try:
            process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
