"""Hands lines to one logger in a thread of its own, so that no disk, network or bug of the logger affects the run.

Only `close` waits for a logger, for a limited time. A line that the logger does not take, because the logger fails or
MOST_WAITING lines wait already, is dropped and counted; a warning comes at the first such line, then at each doubling.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from queue import Full, Queue
from typing import Protocol

import structlog

from services.coordinator.loggers.line import Line

log = structlog.get_logger(__name__)

MOST_WAITING = 1000
"""Most lines that wait for a logger. Chosen: hours of steps, some megabytes."""


class Logger(Protocol):
    """A destination of lines. Methods block, are called from one thread and may raise any error."""

    def write(self, line: Line) -> None:
        """Takes one line."""
        ...

    def close(self) -> None:
        """Flushes or uploads the written lines."""
        ...


class Feed:
    """Feeds one logger, which the thread opens at the first line, because opening may use a network. A logger that cannot be
    opened is tried again with every line.
    """

    def __init__(self, name: str, open_logger: Callable[[], Logger], *, most_waiting: int = MOST_WAITING) -> None:
        self._name, self._open = name, open_logger
        self._lines: Queue[Line | None] = Queue(most_waiting)
        self._lock = threading.Lock()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"logger-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not taken."""
        return self._dropped

    def put(self, line: Line) -> None:
        """Queues a line; returns at once."""
        try:
            self._lines.put_nowait(line)
        except Full:
            self._drop(f"{self._lines.maxsize} lines wait for it")

    def close(self, *, within_s: float) -> None:
        """Waits until the logger has written its waiting lines; after `within_s` warns with the number of lines lost."""
        give_up = time.monotonic() + within_s
        with contextlib.suppress(Full):  # the logger hangs, which the join below shows
            self._lines.put(None, timeout=within_s)
        self._thread.join(max(0.0, give_up - time.monotonic()))
        if self._thread.is_alive():
            log.warning("logger_left_behind", logger_name=self._name, waiting=self._lines.qsize(), after_s=within_s)

    def _run(self) -> None:
        logger = None
        while (line := self._lines.get()) is not None:
            try:
                logger = logger or self._open()
                logger.write(line)
            except Exception as error:  # noqa: BLE001 - foreign code over a network must never fail the run
                self._drop(repr(error))
        if logger is not None:
            try:
                logger.close()
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("logger_not_closed", logger_name=self._name, reason=repr(error))

    def _drop(self, reason: str) -> None:
        with self._lock:
            self._dropped += 1
            dropped = self._dropped
        if dropped & (dropped - 1) == 0:
            log.warning("logger_line_dropped", logger_name=self._name, dropped=dropped, reason=reason)
