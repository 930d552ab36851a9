"""How a process that held process groups ends: at once, with its exit code, and without finalizing the interpreter.

gloo's threads give back a collective's tensors after whoever waited for it has gone on, and take the interpreter's lock for
that. CPython before 3.14 ends a thread that wants the lock once finalization has begun, by unwinding it, and C++ answers
with `terminate called without an active exception`: SIGABRT instead of the exit code, in about 1 of 400 processes whose
last collective came just before their end. A destroyed group does not help: others (meshes, modules) hold it too.
"""

import os
import sys
from collections.abc import Callable
from typing import NoReturn


def end_process(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and leaves with what it returns (None is 0), or with its traceback and 1.

    Nothing registered with atexit runs; `main` has closed and joined what it started. What is no Exception (SystemExit of
    a parser) leaves as ever.
    """
    try:
        code = main() or 0
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process with 1, as the interpreter would have it
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
