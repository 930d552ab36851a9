"""How a process that held process groups ends: at once, with its exit code, and without finalizing the interpreter.

gloo's threads release a collective's tensors after the waiting thread has gone on, and take the interpreter's lock to do
so. CPython before 3.14 unwinds a thread that wants the lock once finalization has begun, and C++ answers with `terminate
called without an active exception`: SIGABRT instead of the exit code, in about 1 of 400 processes whose last collective
came just before their end. Destroying a group does not help: meshes and modules hold references to the group.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def end_process(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and ends the process with the exit code that `main` returns (None is 0), or with a traceback and 1.

    Nothing registered with atexit runs, so `main` must close and join everything that `main` started. A BaseException that
    is no Exception, such as a parser's SystemExit, ends the process in the usual way.
    """
    try:
        code = main() or 0
    except Exception as error:  # noqa: BLE001 - every error ends the process with code 1, as in an ordinary interpreter
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a log on a full disk must not change the exit code
            stream.flush()
    os._exit(code)
