"""Waiting for something to become true, with a deadline."""

import asyncio
import time
from collections.abc import Callable


async def assert_eventually(condition: Callable[[], bool], *, within_s: float = 10.0, what: str = "") -> None:
    """Returns when `condition()` is true; AssertionError naming `what` after `within_s`."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + within_s
    while not condition():
        if loop.time() > give_up:
            raise AssertionError(f"not true within {within_s} s: {what or condition}")
        await asyncio.sleep(0.01)


def assert_eventually_blocking(condition: Callable[[], bool], *, within_s: float = 10.0, what: str = "") -> None:
    """`assert_eventually` for tests of other processes, which have no event loop."""
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"not true within {within_s} s: {what or condition}")
        time.sleep(0.05)
