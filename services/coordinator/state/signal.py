"""A signal on which tasks of one event loop wait for a change."""

import asyncio


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
