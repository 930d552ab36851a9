"""The processes of one run by role, found among the launcher's descendants."""

import os
import signal
from collections.abc import Iterable

import psutil

from tests.chaos.plan import Victim

_MODULES = {
    "services.rollout": Victim.ROLLOUT,
    "services.reward": Victim.REWARD,
    "services.reward.sandbox.grader_process": Victim.GRADER,
    "services.coordinator": Victim.COORDINATOR,
    "services.learner.distributed.node": Victim.TORCHRUN,
    "tests.chaos.environment": Victim.ENVIRONMENT,
}
_RANKS = {"0": Victim.LEADER, "1": Victim.FOLLOWER}
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def descendants(pid: int) -> list[psutil.Process]:
    """Every process that descends from `pid`; none when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except _GONE:
        return []


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; none when it is gone."""
    try:
        return [psutil.Process(pid), *descendants(pid)]
    except _GONE:
        return []


def by_role(processes: Iterable[psutil.Process]) -> dict[Victim, psutil.Process]:
    """The living process of each role; of several the youngest. A stopped one is alive, a zombie is not."""
    found: dict[Victim, psutil.Process] = {}
    for process in sorted(processes, key=psutil.Process.create_time):
        if (victim := _role(process)) is not None:
            found[victim] = process
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs or is stopped, and has not been replaced by another one of the same number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except _GONE:
        return False


def send(process: psutil.Process, signum: signal.Signals) -> bool:
    """Sends a signal; False when the process is gone."""
    if not is_alive(process):
        return False
    os.kill(process.pid, signum)
    return True


def _role(process: psutil.Process) -> Victim | None:
    try:
        words = process.cmdline()
        if not words or process.status() == psutil.STATUS_ZOMBIE:
            return None
        if words[0].endswith(("redis-server", "valkey-server")) or "valkey-server" in words[0]:
            return Victim.REDIS
        if "-m" not in words[:4]:
            return None  # also a process that has not become its service yet
        module = words[words.index("-m") + 1]
        if "--lies" in words:
            return None
        if module == "services.learner":
            return _RANKS[process.environ().get("RANK", "0")]  # a rank alone has no number
        return _MODULES.get(module)
    except _GONE:
        return None
