"""What one receiver may fetch over gRPC: an epoch, the epoch's secret, and the cargo that was opened last.

opened --fetch--> sending --all buckets are written--> idle --open--> opened ...
   any state --a newer epoch of the same receiver--> ended
"""

import contextlib
import hmac
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sluice.errors import NotReady
from sluice.weights.backends import Rendezvous
from sluice.weights.cargo import Cargo


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """One stream of an offer."""

    offer: "Offer"
    cargo: Cargo
    number: int

    @property
    def is_over(self) -> bool:
        """Whether the epoch has ended, or the receiver fetches anew: this stream has nobody to read it."""
        return self.offer.ended or self.offer.fetches != self.number


class Offer:
    """One epoch of one receiver. Thread-safe: opened by any thread, fetched in the event loop of a server."""

    backend: Literal["grpc"] = "grpc"

    def __init__(self, rendezvous: Rendezvous) -> None:
        self.rendezvous = rendezvous
        self.ended = False
        self.fetches = 0
        """How many streams have begun."""
        self._lock = threading.Lock()
        self._cargo: Cargo | None = None
        self._sending = False
        self._opened_s = 0.0

    @property
    def busy(self) -> bool:
        """Whether the receiver fetches, or may still begin to."""
        return self._sending or (
            self._cargo is not None and time.monotonic() < self._opened_s + self.rendezvous.timeout_s
        )

    def send(self, cargo: Cargo) -> None:
        """Offers a cargo. Raises NotReady when the epoch has ended."""
        with self._lock:
            if self.ended:
                raise NotReady(f"epoch {self.rendezvous.epoch} has ended; open a fresh one")
            self._let_go()
            cargo.lend()
            self._cargo, self._opened_s = cargo, time.monotonic()

    def retire(self) -> None:
        """Ends the epoch; a stream under way ends with its running message."""
        with self._lock:
            self.ended = True
            self._let_go()

    def is_for(self, epoch: str, secret: str) -> bool:
        """Whether who names these is the receiver."""
        where = self.rendezvous
        return where.epoch == epoch and hmac.compare_digest(where.secret.encode(), secret.encode())

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Fetch]:
        """While the receiver fetches; ends a former stream of the receiver. Lets the cargo go when all of it was written.

        Raises NotReady when there is nothing to fetch.
        """
        with self._lock:
            if self._cargo is None:
                raise NotReady(f"epoch {self.rendezvous.epoch}: nothing was opened, or all was sent; open it first")
            self.fetches += 1
            fetch = Fetch(offer=self, cargo=self._cargo, number=self.fetches)
            fetch.cargo.lend()
            self._sending = True
        try:
            yield fetch
            with self._lock:
                if self._cargo is fetch.cargo and not fetch.is_over:
                    self._let_go()
        finally:
            with self._lock:
                self._sending = self._sending and self.fetches != fetch.number
            fetch.cargo.give_back()

    def _let_go(self) -> None:
        """The memory of what was offered is free for a later version, as far as this offer goes."""
        if self._cargo is not None:
            self._cargo.give_back()
            self._cargo = None
