"""Runs a step of bookkeeping to its end, because Redis and memory would disagree after a step that stops half way."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even when the caller is cancelled meanwhile; then raises the cancellation.

    For a transition in Redis together with the change of memory that follows; takes no longer than Redis's answer, for which
    a full disk may let everybody wait until `DiskWaits.give_up`.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # a further cancellation; the first one is raised below
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("broken_off", reason=str(error))  # the caller is gone; the next process starts from Redis
        raise
