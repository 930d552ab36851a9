"""The kernel's means to shut this process in: namespaces, limits, a signal at the parent's death. Linux only. Light,
because an interpreter is started for every program that is graded.

Used by processes that run other people's code (grader_process.py, code_child.py), never by the service itself. A means that
the machine does not permit is left out; `python -m services.reward.sandbox.isolation` says which: one line of JSON, `_probe`.

Why namespaces: without a process namespace a child that leaves its session outlives every kill; without a user namespace
the kernel counts processes by user, over all services of that user.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping

_CLONE: Mapping[str, int] = {
    "user": 0x10000000,
    "network": 0x40000000,
    "process": 0x20000000,
    "ipc": 0x08000000,
    "mount": 0x00020000,
}
"""<linux/sched.h>; `user` first: in a user namespace of its own an ordinary user may make the other namespaces."""
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36

_UNUSED_UIDS = range(61184, 65520)
"""systemd's ids for services without a user of their own (https://systemd.io/UIDS-GIDS): no login or daemon has such an id."""


def leave(*, keep_network: bool) -> set[str]:
    """Enters the permitted namespaces and returns their names. Only later children are in the new process namespace.

    Needs a process with one thread. The user keeps number and rights on files, and loses all other privileges.
    """
    if sys.platform != "linux":
        return set()
    uid, gid = os.geteuid(), os.getegid()
    if os.getuid() == 0:
        _disown_root()
    libc = ctypes.CDLL(None)
    wanted = {name: flag for name, flag in _CLONE.items() if not (keep_network and name == "network")}
    entered = {name for name, flag in wanted.items() if libc.unshare(flag) == 0}
    if "user" in entered:
        _map_ids(uid, gid)
    return entered


def _disown_root() -> None:
    """Changes root's real user, because the kernel never limits the number of processes of the real user root."""
    try:
        os.setresuid(_UNUSED_UIDS[os.getpid() % len(_UNUSED_UIDS)], 0, 0)
    except OSError:  # a container without CAP_SETUID, or without that user
        return


def _map_ids(uid: int, gid: int) -> None:
    """Gives the user the same number inside as outside, which programs inside need to make namespaces of their own."""
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except PermissionError:  # AppArmor; the user then has no number inside, and the same rights on files
        return


def counted_alone(entered: set[str]) -> bool:
    """Whether a limit of processes counts this namespace's processes alone, not all of the user's processes."""
    major, minor = os.uname().release.split(".")[:2]
    by_namespace = (int(major), int(minor)) >= (5, 14)  # Linux commit 21d1c5e386bc
    return ("user" in entered and by_namespace) or os.getuid() != os.geteuid()


def limit(kind: int, value: int) -> None:
    """Sets the soft and the hard limit, never above the present hard limit."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def end_with_parent(signum: int = signal.SIGKILL) -> None:
    """Asks the kernel for a signal at the parent's death. Call after `leave`: a change of user takes the request back."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signum)


def adopt_orphans() -> None:
    """Makes orphaned descendants children of this process instead of the system's first process."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def go_on_in_a_child() -> None:
    """Forks and returns in the child; the parent reaps children until this child ends, then ends in the same way."""
    child = os.fork()
    if child == 0:
        end_with_parent()
        return
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _probe() -> dict[str, bool]:
    """Tries out, in this process, what this machine permits.

    `network`: a network namespace, which leads nowhere. `processes`: a limit of the number of processes. `survivors`: a
    process namespace, so that no process that a worker starts outlives the worker or the service. `files`: a mount namespace,
    in which the process sees what it is shown. `landlock` and `filter` (of system calls) stand in for namespaces.
    """
    from services.reward.sandbox import landlock, syscalls

    entered = leave(keep_network=False)
    limited = counted_alone(entered) and _a_fork_is_refused()
    return {
        "network": "network" in entered,
        "processes": limited,
        "survivors": "process" in entered,
        "files": "mount" in entered and os.uname().machine in ("x86_64", "aarch64"),
        "landlock": landlock.version() > 0,
        "filter": syscalls.is_known(),
    }


def _a_fork_is_refused() -> bool:
    """Whether a limit of one process holds; it does not for a process with root's privileges."""
    limit(resource.RLIMIT_NPROC, 1)
    try:
        child = os.fork()
    except BlockingIOError:
        return True
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return False


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_probe()) + "\n")
