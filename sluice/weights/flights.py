"""Buckets under way: two at a time, so that one is on the wire while the other is filled, or digested.

Pure of devices and backends. A group starts an operation and gives a flight; flights end in the order of their start. Whatever
ends a transfer early, no function of this module returns while an operation may still read or write a bucket's memory: each
flight is waited for, at most the flight's own limit.
"""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable
from typing import Protocol

import numpy as np

from sluice.errors import TransferError

DEPTH = 2
"""Operations of one pair at once. A third would wait behind the second, and hold one more bucket's memory."""


class Flight(Protocol):
    """One operation under way."""

    def wait(self) -> None:
        """Returns when the bucket's memory is filled (receiver), or free again (sender). Raises TransferError when the
        operation failed or has taken longer than its limit since its predecessor ended."""
        ...


class Starts(Protocol):
    """A joined group, which starts operations without waiting for them."""

    def start(self, data: np.ndarray) -> Flight:
        """Begins to send `data`, contiguous uint8[n], as the root, or to fill it as the other end."""
        ...


def send(group: Starts, parts: Iterable[np.ndarray]) -> None:
    """Sends every part in order; `parts` may block between two of them. Raises TransferError."""
    for _ in _flown(group, parts):
        pass


def receive(group: Starts, parts: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
    """Yields every part when it is filled, while the next one is under way. Raises TransferError.

    A caller that breaks off closes the iterator (contextlib.closing), which waits for what is under way.
    """
    return _flown(group, parts)


def _flown(group: Starts, parts: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
    under_way: deque[tuple[np.ndarray, Flight]] = deque()
    try:
        for part in parts:
            under_way.append((part, group.start(part)))
            if len(under_way) == DEPTH:
                yield _landed(under_way)
        while under_way:
            yield _landed(under_way)
    finally:
        for _, flight in under_way:
            with contextlib.suppress(TransferError):
                flight.wait()


def _landed(under_way: "deque[tuple[np.ndarray, Flight]]") -> np.ndarray:
    part, flight = under_way.popleft()
    flight.wait()
    return part
