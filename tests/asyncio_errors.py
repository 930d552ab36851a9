"""What asyncio only logs: the exception of a task that nobody awaited, of a callback, of a transport."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_GRPC_POLLER = "PollerCompletionQueue._handle_events"
"""All event loops of a process share gRPC's one queue: the loop of this test is handed what gRPC still has to say to the loop
of a test before it, which is closed. gRPC drops it."""


@contextmanager
def asyncio_errors() -> Iterator[list[str]]:
    """What is logged until the block ends, by all event loops of this process. A task logs when it is garbage collected."""
    found: list[str] = []
    handler = _Into(found)
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


class _Into(logging.Handler):
    """Keeps errors as text."""

    def __init__(self, found: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._found = found
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """With the traceback."""
        text = self.format(record)
        if not (_GRPC_POLLER in text and "Event loop is closed" in text):
            self._found.append(text)
