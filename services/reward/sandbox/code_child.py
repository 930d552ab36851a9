"""Runs one program of a completion, under limits: `python -I code_child.py LIMITS MODE PROGRAM`.

Imports only isolation.py of the service. LIMITS is JSON: `cpu_s`, `memory_bytes`, `file_bytes`. MODE `stdin` runs PROGRAM
as a script; `function` reads {"function", "arguments"} from standard input, calls the function for each list of arguments
and prints a line of JSON a call, {"value": ...} or {"raised": ...}; `probe` ends with 0 iff namespaces are permitted. Ends
with the exit code of the program.

Where permitted the program gets user, network, process and IPC namespaces of its own: the program sees no network, and
when the first process of its namespace ends, the kernel ends all other processes of the program.
"""

import json
import os
import resource
import runpy
import sys

sys.path.insert(
    0, __file__.removesuffix("services/reward/sandbox/code_child.py")
)  # -I leaves the repository out of the path
from services.reward.sandbox import isolation

del sys.path[0]

_MAX_PROCESSES = 64


def main() -> None:
    """Runs the program as the module's docstring says."""
    limits, mode = json.loads(sys.argv[1]), sys.argv[2]
    entered = isolation.leave(keep_network=False)
    isolation.end_with_parent()
    if mode == "probe":
        sys.exit(0 if {"network", "process"} <= entered else 1)
    if "process" in entered:
        isolation.go_on_in_a_child()  # only a child is in the new process namespace
        isolation.go_on_in_a_child()  # the namespace's first process ignores signals, also the limits' signals
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
    os.dup2(null, 1)  # the program's output is not an answer
    names = runpy.run_path(program, run_name="program")
    for arguments in asked["arguments"]:
        try:
            reply = {"value": _function(names, asked["function"])(*arguments)}
            line = json.dumps(reply)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the case has failed
            line = json.dumps({"raised": type(error).__name__})
        replies.write(line + "\n")
        replies.flush()


def _function(names, wanted):
    """The function of that name, or the method of a class Solution, with a fresh Solution for each call."""
    return names[wanted] if wanted in names else getattr(names["Solution"](), wanted)


def _limit(limits: "dict[str, int]") -> None:
    isolation.limit(resource.RLIMIT_CPU, limits["cpu_s"])
    isolation.limit(resource.RLIMIT_AS, limits["memory_bytes"])
    isolation.limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    isolation.limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)
    isolation.limit(resource.RLIMIT_CORE, 0)


if __name__ == "__main__":
    main()
