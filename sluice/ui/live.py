"""A coordinator that is asked once a second and whose events are followed; outlives its restarts.

who waits   for what                          unblocked by
the asker   the next second                   the clock
the asker   an answer                         the client's time limit
the watcher the next event                    the event, the client's own limits, the end of the page's process
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from sluice.client import AsyncClient, Event, RunState, Status
from sluice.errors import SluiceError, Unavailable
from sluice.rpc.credentials_port import Credentials

ASK_EVERY_S = 1.0
EVENTS_KEPT = 500
STEPS_KEPT = 5_000
"""Of a run whose files are on another machine: what its status said of so many steps."""

_NOBODY = "-"
"""No coordinator's process: every event that is kept is new to its reader."""


class Live:
    """One coordinator. `serve` runs until it is cancelled; everything else reads what `serve` has found."""

    def __init__(
        self,
        address: str,
        *,
        credentials: Credentials,
        where: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`where` tells the address of the coordinator that was started last, which may be another one than the first."""
        self.address = address
        self._where = where or (lambda: self.address)
        self._credentials, self._clock = credentials, clock
        self.client: AsyncClient | None = None
        self.status: Status | None = None
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self.away_since: float | None = None
        """Unix time since when the coordinator does not answer."""
        self.problem = ""
        self.steps: dict[int, dict[str, float]] = {}
        """What the status said after each step that was seen: `metrics.jsonl`'s lines, for a run on another machine."""
        self.asked = 0
        """Grows with every answer."""

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, as far as the coordinator said."""
        return self.status is not None and RunState(self.status.state).final

    async def serve(self) -> None:
        """Asks and follows until cancelled."""
        while True:
            async with AsyncClient(self.address, credentials=self._credentials, retry_reads=False) as client:
                self.client = client
                async with asyncio.TaskGroup() as tasks:
                    following = tasks.create_task(self._follow(client))
                    await self._ask(client)
                    following.cancel()
            self.address = self._now_at()

    def _now_at(self) -> str:
        """Where the coordinator was started last; the former address while nobody can tell, as of a folder that is gone."""
        try:
            return self._where() or self.address
        except (OSError, UnicodeDecodeError):
            return self.address

    async def _ask(self, client: AsyncClient) -> None:
        """Returns when the coordinator is at another address."""
        while True:
            try:
                self._take(await client.status())
            except SluiceError as error:
                self._miss(error)
                if self._now_at() != self.address:
                    return
            await asyncio.sleep(ASK_EVERY_S)

    async def _follow(self, client: AsyncClient) -> None:
        """A run that has ended has no more events, unless it is started again."""
        while True:
            if not self.is_over:
                await self._follow_once(client)
            await asyncio.sleep(ASK_EVERY_S)

    async def _follow_once(self, client: AsyncClient) -> None:
        """Events of before stay until the coordinator, which knows them too, tells its own."""
        is_first = True
        try:
            async for event in client.watch(process=_NOBODY):
                if is_first:
                    self.events.clear()
                    is_first = False
                self.events.append(event)
        except SluiceError as error:
            self._miss(error)

    def _take(self, status: Status) -> None:
        self.status, self.away_since, self.problem = status, None, ""
        self.asked += 1
        if status.step and status.step not in self.steps:
            step = status.step - 1
            self.steps[status.step] = {"step": float(step), "time_s": self._clock(), **dict(status.metrics)}
            while len(self.steps) > STEPS_KEPT:
                self.steps.pop(next(iter(self.steps)))

    def _miss(self, error: SluiceError) -> None:
        if self.away_since is None and isinstance(error, Unavailable):
            self.away_since = self._clock()
        self.problem = str(error)
        self.asked += 1
