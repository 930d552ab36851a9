"""Hands spans to their writer in a thread of its own, so that no collector and no disk delays a run.

What is queued is a function that makes spans: also the making is the thread's work. Not OpenTelemetry's BatchSpanProcessor,
which takes spans that the event loop has made, and does not count what it drops.

 who waits    for what                                        unblocked by
 the thread   records, and then FLUSH_S for more of them      `put`, `close`
 the thread   its writer                                      the writer's own limit
 `close`      the thread, for a limited time                  the writer
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, Full, Queue
from typing import Final, Protocol

import structlog

from sluice.telemetry.traces.span import SpanRecord

log = structlog.get_logger(__name__)

Maker = Callable[[], Iterable[SpanRecord]]
"""Makes the spans of one record: a group, a call, a step, a push."""

MOST_WAITING: Final = 4096
"""Most records that wait. Chosen: some megabytes, and many seconds of a large run."""
AT_ONCE: Final = 512
"""Most records in one call of the writer; a span has some hundred bytes, and a collector takes 4 MiB a call by default."""
FLUSH_S: Final = 1.0
"""How long the first record of a call waits for others."""


class SpanWriter(Protocol):
    """Takes spans away. Called from one thread; may block up to a limit of its own, and may raise any error."""

    def write(self, spans: Iterable[SpanRecord]) -> None:
        """Takes all spans, or raises. A span is made when the writer asks for it, so that the spans are never all in
        memory at once.
        """
        ...

    def close(self) -> None:
        """Frees what the writer holds."""
        ...


class SpanFeed:
    """A bounded queue in front of one writer, which the thread opens at its first record. What is not taken is counted."""

    def __init__(
        self, open_writer: Callable[[], SpanWriter], *, most_waiting: int = MOST_WAITING, flush_s: float = FLUSH_S
    ) -> None:
        self._open, self._flush_s = open_writer, flush_s
        self._records: Queue[Maker | None] = Queue(most_waiting)
        self._lock = threading.Lock()
        self._dropped = 0
        self._closing = threading.Event()
        self._ended = False
        """Whether the thread has come to the last record."""
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records whose spans were not written."""
        return self._dropped

    def put(self, record: Maker) -> None:
        """Queues a record; returns at once."""
        if self._closing.is_set():
            return
        try:
            self._records.put_nowait(record)
        except Full:
            self._drop(1, f"{self._records.maxsize} records wait for the writer")

    def close(self, *, within_s: float) -> None:
        """Waits until the waiting records are written; after `within_s` counts them as lost."""
        give_up = time.monotonic() + within_s
        self._closing.set()
        with contextlib.suppress(Full):  # the writer hangs, which the join below shows
            self._records.put(None, timeout=within_s)
        self._thread.join(max(0.0, give_up - time.monotonic()))
        if self._thread.is_alive():
            self._drop(self._records.qsize(), f"the writer was not ready within {within_s:g} s")

    def _run(self) -> None:
        writer: SpanWriter | None = None
        while not self._ended:
            if not (records := self._some()):
                continue
            try:
                writer = writer or self._open()
                writer.write(span for record in records for span in record())
            except Exception as error:  # noqa: BLE001 - a collector, a disk or a bug in here must never fail the run
                self._drop(len(records), f"{type(error).__name__}: {error}")
        if writer is not None:
            try:
                writer.close()
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("traces_not_closed", reason=f"{type(error).__name__}: {error}")

    def _some(self) -> list[Maker]:
        """The records of the next call; none at the feed's end."""
        found: list[Maker] = []
        record, until = self._records.get(), time.monotonic() + self._flush_s
        while record is not None:
            found.append(record)
            left_s = until - time.monotonic()
            if len(found) == AT_ONCE or left_s <= 0:
                return found
            try:
                record = self._records.get(timeout=left_s)
            except Empty:
                return found
        self._ended = True
        return found

    def _drop(self, records: int, reason: str) -> None:
        with self._lock:
            before, self._dropped = self._dropped, self._dropped + records
        if before.bit_length() != self._dropped.bit_length():  # at the first one, then at each doubling
            log.warning("traces_dropped", records=self._dropped, reason=reason)
