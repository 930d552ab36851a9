"""The process above a worker process: the guard grades nothing, and ends when no process below lives any more.

    service -> guard -> [first process of a namespace ->] worker -> processes that a grader starts

The guard ends when the service ends, when the service sends SIGTERM, and when the worker ends. The end of a process
namespace ends every process in the namespace, also children that ignore signals or left their session. Where namespaces
are not permitted the guard stops and kills all of its descendants itself; orphans become the guard's children and so
cannot hide.
"""

import os
import resource
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from services.reward.sandbox import isolation
from services.reward.sandbox.small_root import make_read_only, show_own_processes
from sluice.process.child import hide

_SOCKETS = (
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/dbus/system_bus_socket",
)
_WAKERS = (signal.SIGTERM, signal.SIGCHLD)


def guarded(parent_pid: int, *, network: bool, max_processes: int) -> None:
    """Forks: returns in the worker, which may have `max_processes` below; the guard stays inside this function."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAKERS)
    entered = isolation.leave(keep_network=network)
    if "mount" in entered:
        make_read_only(writable=_temporary_folders(), hidden=_hidden())
    hide()
    isolation.adopt_orphans()
    isolation.end_with_parent(signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit("the reward service is gone")
    child = os.fork()
    if child != 0:
        _stay(child, alone="process" in entered)
    isolation.end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAKERS)
    if "process" in entered:
        isolation.go_on_in_a_child()  # the namespace's first process ignores signals, also the limits' signals
        if "mount" in entered:
            show_own_processes()
    if isolation.counted_alone(entered):
        isolation.limit(resource.RLIMIT_NPROC, max_processes)


def _temporary_folders() -> list[str]:
    return [tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]


def _hidden() -> list[str]:
    """Sockets that command this machine, and the folders of the sockets of runs."""
    return [
        *_SOCKETS,
        *(str(found) for folder in _temporary_folders() for found in Path(folder).glob("sluice-redis-*")),
    ]


def _stay(child: int, *, alone: bool) -> None:
    """Waits for an end, then ends with all processes below. `alone`: the end of the child ends its whole namespace."""
    while signal.sigwait(_WAKERS) == signal.SIGCHLD and not _has_ended(child):
        pass
    for pid in [child] if alone else _stopped_descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def _has_ended(child: int) -> bool:
    """Reaps every process that has ended, and says whether `child` is among them."""
    ended = None
    while ended not in (0, child):
        ended, _ = os.waitpid(-1, os.WNOHANG)
    return ended == child


def _stopped_descendants() -> set[int]:
    """Stops all processes below, until no new one appears: a stopped process cannot fork while others are killed."""
    stopped: set[int] = set()
    while new := _descendants() - stopped:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
    return stopped


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            after_name = entry.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(entry.parent.name))
    found, below = set[int](), children.get(os.getpid(), [])
    while below:
        found.update(below)
        below = [pid for parent in below for pid in children.get(parent, [])]
    return found
