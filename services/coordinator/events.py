"""The event stream people watch: the newest events are kept, every watcher reads at its own pace."""

import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from services.coordinator.fleet import Signal

KEPT_EVENTS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened."""

    sequence: int
    time_s: float
    kind: str
    message: str
    values: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


class Events:
    """A bounded log with watchers; one that falls behind by more than KEPT_EVENTS misses the oldest."""

    def __init__(self) -> None:
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
        """Ends every watch once it has read what is there."""
        self._closed = True
        self._more.notify()

    async def watch(self, *, after: int) -> AsyncIterator[Event]:
        """Events after sequence number `after` (0: from now on) until closed.

        A number that was never given out is one of a former process: everything kept is new then.
        """
        seen = after if 0 < after <= self._sequence else 0 if after > 0 else self._sequence
        while True:
            for event in [event for event in self._kept if event.sequence > seen]:
                seen = event.sequence
                yield event
            if self._closed:
                return
            if seen >= self._sequence:
                await self._more.wait()
