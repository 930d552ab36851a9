"""A thread with one event loop in it, so that training may block while gRPC goes on."""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

T = TypeVar("T")

MEANWHILE_S = 20.0
"""How often a call that lasts does what has to be done meanwhile."""


class ControlThread:
    """Runs coroutines for the thread that made this object, until `close`. A daemon, so that a crash of training ends the
    process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        context = contextvars.copy_context()  # the logs' bound keys
        self._thread = threading.Thread(target=context.run, args=(self._loop.run_forever,), name="control", daemon=True)
        self._background: list[Future[Any]] = []
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], *, meanwhile: Callable[[], object] | None = None) -> T:
        """Runs `coroutine`, which must have a deadline of its own or wait for work that goes on, and blocks until the end;
        calls `meanwhile` every MEANWHILE_S. Raises the coroutine's error.

        As soon as a kept task has ended, the coroutine is broken off and the task's error is raised: a learner that the
        coordinator refuses need not wait for the answer to its call.
        """
        calling = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        ends, pause_s = [calling, *self._background], None if meanwhile is None else MEANWHILE_S
        while not wait(ends, timeout=pause_s, return_when=FIRST_COMPLETED).done and meanwhile is not None:
            meanwhile()
        for task in self._background:
            if task.done():
                calling.cancel()
                task.result()
        return calling.result()

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Starts a task that should outlive all calls; the call under way, or the next call, raises the task's failure."""
        self._background.append(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    def soon(self, action: Callable[[], None]) -> None:
        """Runs a plain function in the loop; safe from any thread and in a signal handler."""
        self._loop.call_soon_threadsafe(action)

    def close(self, finish: Callable[[], Awaitable[None]]) -> None:
        """Ends the kept tasks, runs `finish`, then ends the thread."""
        asyncio.run_coroutine_threadsafe(self._end(finish), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, finish: Callable[[], Awaitable[None]]) -> None:
        for task in self._background:
            task.cancel()
        await finish()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
