"""The event stream that people watch: the newest events are kept, every watcher reads at its own pace."""

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from services.coordinator.state.signal import Signal

KEPT_EVENTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One event of a run."""

    sequence: int
    time_s: float
    kind: str
    message: str
    values: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class Events:
    """A bounded log with watchers; a watcher that falls behind by more than KEPT_EVENTS misses the oldest events."""

    def __init__(self) -> None:
        self.process = secrets.token_hex(8)
        """The name of the process to which the sequence numbers belong."""
        self._kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._sequence = 0
        self._more = Signal()
        self._closed = False

    def emit(
        self,
        kind: str,
        message: str,
        *,
        values: Mapping[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Appends an event."""
        self._sequence += 1
        self._kept.append(
            Event(
                sequence=self._sequence,
                time_s=time.time(),
                kind=kind,
                message=message,
                values=values or {},
                labels=labels or {},
            )
        )
        self._more.notify()

    def close(self) -> None:
        """Ends every watch after the watch has read all events."""
        self._closed = True
        self._more.notify()

    def watch(self, *, after: int, process: str = "", over: Callable[[], bool] = lambda: False) -> AsyncIterator[Event]:
        """Events after sequence number `after` of `process` (0: from now on; "": this process) until closed or `over`."""
        return self._after(self.begin(after=after, process=process), over)

    def begin(self, *, after: int, process: str = "") -> int:
        """The sequence number of this process behind which a watch begins.

        For a number of another process, or a number that was never given out, every kept event is new.
        """
        ours = process in ("", self.process) and after <= self._sequence
        return (after if ours else 0) if after > 0 or process else self._sequence

    async def _after(self, seen: int, over: Callable[[], bool]) -> AsyncIterator[Event]:
        while True:
            for event in [event for event in self._kept if event.sequence > seen]:
                seen = event.sequence
                yield event
            if self._closed or over():
                return
            if seen >= self._sequence:
                await self._more.wait()
