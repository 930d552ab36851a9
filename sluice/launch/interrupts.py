"""Ctrl-C and SIGTERM as events: the first signal asks for an orderly end, the second for an end at once."""

import asyncio
import signal
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """A context manager, inside a running event loop."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signum, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for signum in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(signum)

    def _heard(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
