"""Waiting for something to become true, with a deadline."""

import asyncio
from collections.abc import Callable


async def assert_eventually(condition: Callable[[], bool], *, within_s: float = 10.0, what: str = "") -> None:
    """Returns when `condition()` is true; AssertionError naming `what` after `within_s`."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + within_s
    while not condition():
        if loop.time() > give_up:
            raise AssertionError(f"not true within {within_s} s: {what or condition}")
        await asyncio.sleep(0.01)
