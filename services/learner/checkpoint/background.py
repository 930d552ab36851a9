"""One function call in a thread of its own."""

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_background(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
    """Starts the call and returns a future of its result or exception.

    The thread is a daemon: a disk that hangs must not keep the process from leaving.
    """
    outcome: Future[T] = Future()
    context = contextvars.copy_context()  # the logs' bound keys

    def run() -> None:
        try:
            result = context.run(function, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - torch's CheckpointException is one; raised by `result()`
            outcome.set_exception(error)
        else:
            outcome.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome
