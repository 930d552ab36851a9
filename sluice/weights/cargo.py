"""A payload with its bytes: whole at the learner, and filling up bucket by bucket at a receiver, which may relay it.

Only verified bytes are ever in a cargo: a bucket arrives in memory of its own and is copied once its digest is right. So a
cargo that was interrupted goes on at the bucket that it lacks, from whoever sends it.
"""

import threading
import time

import numpy as np
from blake3 import blake3

from sluice.errors import TransferError, WrongBytes
from sluice.weights.payload import Payload, digest_of


class Cargo:
    """Thread-safe. `accept` is called by the receiving thread, `wait` by any number of senders.

    who waits     for what                         unblocked by
    a sender      a bucket that has not arrived    `accept`, `fail`, its own limit
    """

    def __init__(self, payload: Payload, buffer: np.ndarray, *, hasher: blake3 | None = None) -> None:
        """An empty cargo that fills `buffer`, uint8[payload.total_bytes]; `hasher` is fed all bytes in order."""
        assert buffer.shape == (payload.total_bytes,)
        self.payload = payload
        self.buffer = buffer
        self._hasher = hasher
        self._changed = threading.Condition()
        self._verified = 0
        self._readers = 0
        self._error: TransferError | None = None

    @classmethod
    def whole(cls, payload: Payload, buffer: np.ndarray) -> "Cargo":
        """A cargo whose bytes are all there: the learner's."""
        made = cls(payload, buffer)
        made._verified = len(payload.bucket_digests)
        return made

    @property
    def verified(self) -> int:
        """How many leading buckets are there."""
        return self._verified

    @property
    def is_whole(self) -> bool:
        return self._verified == len(self.payload.bucket_digests)

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    @property
    def is_lent(self) -> bool:
        """Whether somebody may still read the buffer, which then takes no other bytes."""
        return self._readers > 0

    def lend(self) -> None:
        """Notes one more reader of the buffer."""
        with self._changed:
            self._readers += 1

    def give_back(self) -> None:
        """Notes that a reader is done."""
        with self._changed:
            self._readers -= 1

    def accept(self, bucket: int, data: np.ndarray) -> None:
        """Takes the bucket that arrived, uint8[n]; a bucket that is already there is left as it is.

        Raises TransferError when the digest is wrong, when a bucket before it is missing, or after `fail`.
        """
        right = digest_of(data) == self.payload.bucket_digests[bucket]
        with self._changed:
            self._raise_error()
            if bucket < self._verified:
                return
            if not right or bucket > self._verified:
                what = "comes too early" if right else "has a digest other than the learner's"
                kind = TransferError if right else WrongBytes
                raise kind(f"bucket {bucket} of {len(self.payload.bucket_digests)} {what}")
            self.buffer[self.payload.bounds(bucket)] = data
            if self._hasher is not None:
                self._hasher.update(data.data)
            self._verified += 1
            self._changed.notify_all()

    def wait(self, bucket: int, *, timeout_s: float) -> np.ndarray:
        """The bytes of a bucket, once they are verified. Raises TransferError after `timeout_s` or `fail`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._verified <= bucket:
                self._raise_error()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TransferError(f"bucket {bucket} has not arrived here within {timeout_s:g} s")
                self._changed.wait(left_s)
        return self.buffer[self.payload.bounds(bucket)]

    def fail(self, error: TransferError) -> None:
        """Gives the cargo up: later `accept`s, and waits for what has not arrived, raise `error`."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise TransferError(str(self._error))
