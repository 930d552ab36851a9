"""Runs one program of a completion, under limits: `python -I code_child.py LIMITS MODE PROGRAM`.

Not a part of the service: it imports nothing of it. LIMITS is JSON: `cpu_s`, `memory_bytes`, `file_bytes`. MODE `stdin`
runs PROGRAM as a script; `function` reads {"function", "arguments"} from standard input, calls it for each list of
arguments and prints a line of JSON a call, {"value": ...} or {"raised": ...}; `probe` ends with 0 iff namespaces are
permitted. Ends with the exit code of the program.

Where permitted the program gets user, network, process and IPC namespaces of its own: it sees no network, and when its
first process ends the kernel ends all others.
"""

import ctypes
import json
import os
import resource
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_NAMESPACES = (
    0x10000000 | 0x40000000 | 0x20000000 | 0x08000000
)  # <linux/sched.h>: CLONE_NEWUSER, NEWNET, NEWPID, NEWIPC
_MAX_PROCESSES = 64
_NOBODY = 65534


def main() -> None:
    """See above."""
    limits, mode = json.loads(sys.argv[1]), sys.argv[2]
    _end_with_parent()
    if os.getuid() == 0:  # the kernel never limits the number of root's processes, and tells root by the real user
        os.setresuid(_NOBODY, 0, 0)
    permitted = _leave_namespaces()
    if mode == "probe":
        sys.exit(0 if permitted else 1)
    if permitted:
        _go_on_in_a_child()  # only a child is in the new process namespace
        _go_on_in_a_child()  # and its first process is deaf to signals, those of its limits included
    _limit(limits)
    if mode == "stdin":
        sys.argv = [sys.argv[3]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        _call_function(sys.argv[3])


def _call_function(program: str) -> None:
    asked = json.load(sys.stdin)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what the program prints is not an answer
    names = runpy.run_path(program, run_name="program")
    for arguments in asked["arguments"]:
        try:
            reply = {"value": _function(names, asked["function"])(*arguments)}
            line = json.dumps(reply)
        except Exception as error:  # noqa: BLE001 - the program is anybody's; the case has failed
            line = json.dumps({"raised": type(error).__name__})
        replies.write(line + "\n")
        replies.flush()


def _function(names, wanted):
    """The function of that name, or the method of a class Solution (a fresh one a call)."""
    return names[wanted] if wanted in names else getattr(names["Solution"](), wanted)


def _leave_namespaces() -> bool:
    return sys.platform == "linux" and ctypes.CDLL(None).unshare(_NAMESPACES) == 0


def _go_on_in_a_child() -> None:
    """Returns in the child alone; the parent waits for it and ends as it ended."""
    child = os.fork()
    if child == 0:
        _end_with_parent()
        return
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _limit(limits: "dict[str, int]") -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, _MAX_PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
