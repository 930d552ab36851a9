"""A clock that stands still until a test moves the clock."""

import asyncio
import heapq


class ManualClock:
    """Implements sluice.clock.Clock; `advance` wakes the sleepers whose time has come, in order."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Returns once the clock has been advanced by `seconds`."""
        self._count += 1
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, self._count, future))
        await future

    def skip(self, seconds: float) -> None:
        """Moves the clock without waking anybody, like a process that was stopped: sleepers wake at the next `advance`."""
        self._now += seconds
        self._sleepers = [(max(due, self._now), count, woken) for due, count, woken in self._sleepers]

    async def advance(self, seconds: float) -> None:
        """Moves the clock and lets the woken sleepers run."""
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            self._now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)
            await asyncio.sleep(0)
        self._now = end
        await asyncio.sleep(0)
