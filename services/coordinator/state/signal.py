"""What tasks of one event loop wait for: that something has changed."""

import asyncio


class Signal:
    """A condition many may wait for: `wait` returns at the next `notify`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wakes everyone who waits now."""
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
