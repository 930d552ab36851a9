"""Runs one program of a completion, shut in: `python -I code_child.py LIMITS MODE PROGRAM`.

Imports only light modules of this folder. LIMITS is JSON: `cpu_s`, `memory_bytes`, `file_bytes`, `shut_in` (whether the program
may only run shut in), `begun_fd` (a descriptor that gets a byte right before the program begins). MODE `stdin` runs PROGRAM as
a script; `function` reads {"function", "arguments"} from standard input, calls the function for each list of arguments and
prints a line of JSON a call, {"value": ...} or {"raised": ...}; `probe` prints as JSON what would be kept from a program. Ends
with the exit code of the program.

A program finds the names of the usual modules (`_MODULES`) without importing them, and may recurse deeply, as in verl's
prime_code. The names stand behind the built-in ones, so that a program's own names and `fn_name` mean the program's.

Where permitted the program gets namespaces of its own: it sees no network, no other process and a file system of its own,
and when the first process of its namespace ends, the kernel ends all other processes of the program. Elsewhere Landlock and a
filter of system calls stand in (shutting_in.py). Where neither can be had the program does not begin, unless LIMITS allow it.
"""

import builtins
import decimal
import importlib
import json
import math
import numbers
import os
import resource
import sys
import types
from collections.abc import Callable, Mapping
from importlib.machinery import SourceFileLoader

sys.path.insert(
    0, __file__.removesuffix("services/reward/sandbox/code_child.py")
)  # -I leaves the repository out of the path
from services.reward.sandbox import isolation, privileges
from services.reward.sandbox.shutting_in import PROMISES, shut_in

del sys.path[0]

_MAX_PROCESSES = 64
_MODULES = (
    *(
        "string",
        "re",
        "datetime",
        "collections",
        "heapq",
        "bisect",
        "copy",
        "math",
        "random",
        "statistics",
        "itertools",
    ),
    *("functools", "operator", "io", "sys", "json", "typing"),
)
"""In verl's order: of a name in two modules the later one counts, except that a module's own name is the module."""
_RECURSION_LIMIT = 600_000
_NOT_BEGUN = 1


def main() -> None:
    """Runs the program as the module's docstring says."""
    limits, mode, program = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    with open(program, "rb") as file:
        text = file.read()
    entered = isolation.leave(keep_network=False)
    privileges.hide()
    isolation.end_with_parent()
    if "process" in entered:
        isolation.go_on_in_a_child()  # only a child is in the new process namespace
        isolation.go_on_in_a_child()  # the namespace's first process ignores signals, also the limits' signals
    kept = shut_in(entered, folder=os.path.dirname(program))
    if mode == "probe":
        sys.stdout.write(json.dumps(sorted(kept)) + "\n")
        return
    _limit(limits)
    if limits["shut_in"] and not kept >= PROMISES:
        sys.exit(_NOT_BEGUN)
    _lay_out_names()
    os.write(limits["begun_fd"], b"!")
    os.close(limits["begun_fd"])
    if mode == "stdin":
        sys.argv = ["program.py"]
        _run(text, "__main__")
    else:
        _call_function(text)


def _run(text: bytes, name: str) -> "dict[str, Callable[..., object]]":
    """Runs a program as the module `name`, from memory: the folder stays empty. Returns what it has defined."""
    before, module = sys.modules.get(name), types.ModuleType(name)
    sys.modules[name] = module
    _InMemory(name, text).exec_module(module)
    del before  # until here: without it the names of a replaced __main__ would be gone
    return module.__dict__


class _InMemory(SourceFileLoader):
    """Loads a module from a text as from a file `program.py`, which does not exist."""

    def __init__(self, name: str, text: bytes) -> None:
        super().__init__(name, "program.py")
        self._text = text

    def get_data(self, path: str) -> bytes:
        """The text."""
        return self._text

    def path_stats(self, path: str) -> "Mapping[str, object]":
        """There are none, so that no bytecode is looked for."""
        raise FileNotFoundError(path)


def _call_function(text: bytes) -> None:
    asked = json.load(sys.stdin)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the program's output is not an answer
    names = _run(text, "program")
    arguments_of_calls = [_with_whole_keys(arguments) for arguments in asked["arguments"]]
    for arguments in arguments_of_calls:
        try:
            reply = {"value": _function(names, asked["function"])(*arguments)}
            line = json.dumps(reply, default=_in_json)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the case has failed
            line = json.dumps({"raised": type(error).__name__})
        replies.write(line + "\n")
        replies.flush()


def _function(names, wanted):
    """The method of a class Solution, with a fresh Solution for each call, else the function of that name."""
    solution = names.get("Solution")
    return getattr(solution(), wanted) if hasattr(solution, wanted) else names[wanted]


def _in_json(value):
    """A value of a library that equals a value of JSON: numbers and arrays of numpy, fractions, decimals. Raises TypeError."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, numbers.Real | decimal.Decimal):  # complex numbers are not in JSON
        return math.floor(value) if value == math.floor(value) else float(value)
    raise TypeError(type(value).__name__)


def _with_whole_keys(arguments):
    """JSON turns the keys of a mapping into texts; a mapping that is the only argument gets its whole numbers back."""
    if len(arguments) != 1 or not isinstance(arguments[0], dict):
        return arguments
    try:
        return [{int(key): value for key, value in arguments[0].items()}]
    except ValueError:
        return arguments


def _lay_out_names() -> None:
    """Puts the public names of `_MODULES` behind the built-in names."""
    names = {}
    modules = {name: importlib.import_module(name) for name in _MODULES}
    for module in modules.values():
        public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        names |= {name: getattr(module, name) for name in public}
    for name, value in {**names, **modules}.items():
        if not hasattr(builtins, name):
            setattr(builtins, name, value)
    sys.setrecursionlimit(_RECURSION_LIMIT)


def _limit(limits: "dict[str, int]") -> None:
    isolation.limit(resource.RLIMIT_CPU, limits["cpu_s"])
    isolation.limit(resource.RLIMIT_AS, limits["memory_bytes"])
    isolation.limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    isolation.limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)
    isolation.limit(resource.RLIMIT_CORE, 0)


if __name__ == "__main__":
    main()
