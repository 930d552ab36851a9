"""A step of bookkeeping that must not stop in the middle: Redis and memory would tell two stories afterwards."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even when the caller is cancelled meanwhile; the cancellation goes on after it.

    For a transition in Redis together with the memory that follows it, no longer than Redis takes to answer.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # cancelled once more: the first cancellation is raised below
        raise
