"""A signal on which tasks of one event loop wait for a change."""

import asyncio
from collections.abc import Callable


class Signal:
    """A condition for many waiters: `wait` returns at the next `notify`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wakes all present waiters."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """True at the next notify, False when `timeout_s` passes first."""
        if timeout_s is None:
            return await self._event.wait()
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True

    async def until(self, is_due: Callable[[], bool], timeout_s: float) -> bool:
        """True at the first notify after which `is_due` holds, False when `timeout_s` passes first.

        For a waiter whom few changes concern: `is_due` is cheap and asked after every notify, the waiter itself is not.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._event.wait()
                    if is_due():
                        return True
        except TimeoutError:
            return False
