"""Calls whose work waits for room on a full disk: they are answered with DiskFull, and their work goes on.

 who waits    for what       unblocked by
 a call       its own work   the end of the work; ANSWER_AFTER_S, while the coordinator's disk is full
A caller has a deadline of its own, behind which a coordinator that waits looks like one that is dead. The work is not broken
off, because a step that is half booked must be booked to its end; the same call, made again, first waits for that end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sluice.errors import DiskFull
from sluice.limits import ANSWER_AFTER_S
from sluice.run_dir.full_disk import DiskWaits

T = TypeVar("T")


class DiskPatience:
    """The calls of one coordinator."""

    def __init__(self, disk: DiskWaits) -> None:
        self._disk = disk
        self._left: dict[str, asyncio.Task[Any]] = {}
        """Work that goes on after its call was answered, by the name of the call."""

    async def unless_full(self, call: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`. Raises DiskFull when the work is not done after ANSWER_AFTER_S and a disk is full."""
        while (former := self._left.get(call)) is not None:
            await self._ended(former)
            self._forget(call, former)
        task = asyncio.create_task(work(), name=call)
        try:
            await self._ended(task)
        except DiskFull:
            self._left[call] = task
            task.add_done_callback(lambda done: self._forget(call, done))
            raise
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise
        return task.result()

    async def _ended(self, task: "asyncio.Task[Any]") -> None:
        """Returns when the task has ended, in whatever way. Raises DiskFull, see `unless_full`."""
        full = asyncio.create_task(self._disk.longer_than(ANSWER_AFTER_S))
        try:
            await asyncio.wait([task, full], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise DiskFull(full.result())
        finally:
            full.cancel()

    def _forget(self, call: str, done: "asyncio.Task[Any]") -> None:
        """The next call does the work again, and hears of its failure if it fails again."""
        if self._left.get(call) is done:
            del self._left[call]
        if not done.cancelled():
            done.exception()
