"""The sending end of transfers: one thread per receiver and membership epoch, for the learner as for a rollout that relays.

The thread joins, is told by the receiver which bucket it lacks, sends from there, then waits for the next `open` of the same
epoch or for its retirement. A bucket leaves as soon as it is there. A failure is logged and ends its own epoch alone; the
coordinator hears of the failure from the receiver. A send that returns proves nothing; only the receiver's acknowledgement
proves that a version arrived.

    opened --join--> sending --done--> idle --open--> sending ...
       any state --error or a newer epoch of the same receiver--> ended
"""

import contextlib
import queue
import secrets
import threading
import time
from dataclasses import dataclass

import numpy as np
import structlog

from sluice.errors import NotReady, Overloaded, TransferError
from sluice.weights.backends import ROOT_RANK, Collective, Rendezvous, TransferGroup, TransferStore, join
from sluice.weights.cargo import Cargo

log = structlog.get_logger(__name__)

MAX_LINKS = 1024
"""Sender threads at once, including ended epochs whose last operation still runs; chosen: 4 x 256 rollouts."""

PAIR = 2
"""World size of a transfer group: a source and one receiver."""

RECEIVER_RANK = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedLink:
    """Where a receiver joins."""

    rendezvous: Rendezvous
    backend: Collective
    new_epoch: bool


class Links:
    """Thread-safe. Receivers reach this machine at `host`; the store listens on `bind`. Raises OSError if it cannot."""

    def __init__(self, *, host: str, bind: str = "127.0.0.1", port: int = 0) -> None:
        self._host = host
        self._store = TransferStore(bind=bind, port=port)
        self._lock = threading.Lock()
        self._links: dict[str, _Link] = {}
        self._retired: list[_Link] = []
        self._closed = False

    def open(self, cargo: Cargo, *, receiver_id: str, epoch: str, backend: Collective, timeout_s: float) -> OpenedLink:
        """Begins sending to one receiver; returns at once. An epoch keeps the backend with which it began.

        Raises NotReady when the epoch has ended or is busy (then open a fresh one), Overloaded at MAX_LINKS.
        """
        with self._lock:
            if self._closed:
                raise NotReady("this source of weights is closing")
            link = self._links.get(receiver_id)
            new_epoch = link is None or link.rendezvous.epoch != epoch
            if new_epoch:
                link = self._start(receiver_id, epoch, backend, timeout_s)
            assert link is not None
            link.send(cargo)
        return OpenedLink(rendezvous=link.rendezvous, backend=link.backend, new_epoch=new_epoch)

    def retire(self, receiver_id: str) -> bool:
        """Ends a receiver's epoch unless it is sending; returns whether nothing is sent to that receiver any more."""
        with self._lock:
            link = self._links.get(receiver_id)
            if link is not None and link.busy:
                return False
            self._retire(receiver_id)
            return True

    def threads(self) -> dict[str, threading.Thread]:
        """The threads of the epochs that have not ended, by receiver."""
        with self._lock:
            return {name: link.thread for name, link in self._links.items()}

    def close(self) -> None:
        """Retires every epoch; waits for the threads, for each at most until its running operation ends."""
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._retired]
            self._links.clear()
        for link in links:
            link.retire()
        for link in links:
            link.thread.join()

    def _retire(self, receiver_id: str) -> None:
        self._retired = [link for link in self._retired if link.thread.is_alive()]
        if (former := self._links.pop(receiver_id, None)) is not None:
            former.retire()
            self._retired.append(former)

    def _start(self, receiver_id: str, epoch: str, backend: Collective, timeout_s: float) -> "_Link":
        self._retire(receiver_id)
        if len(self._links) + len(self._retired) >= MAX_LINKS:
            raise Overloaded(f"{MAX_LINKS} weight transfers are open; wait until some have ended")
        rendezvous = Rendezvous(
            host=self._host,
            port=self._store.port,
            secret=secrets.token_hex(16),
            epoch=epoch,
            rank=ROOT_RANK,
            world_size=PAIR,
            timeout_s=timeout_s,
        )
        link = self._links[receiver_id] = _Link(receiver_id, rendezvous, backend)
        link.thread.start()
        return link


class _Link:
    """One epoch of one receiver, and the thread that serves it."""

    def __init__(self, receiver_id: str, rendezvous: Rendezvous, backend: Collective) -> None:
        self.rendezvous = rendezvous
        self.backend: Collective = backend
        self.busy = False
        """Whether this epoch has something to send."""
        self.thread = threading.Thread(target=self._run, name=f"weights-{receiver_id}", daemon=True)
        self._inbox: queue.Queue[Cargo | None] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        self._log = log.bind(rollout_id=receiver_id, epoch=rendezvous.epoch)

    def send(self, cargo: Cargo) -> None:
        """Queues one cargo. Raises NotReady when the epoch has ended or another cargo still waits."""
        if self._ended.is_set():
            raise NotReady(f"epoch {self.rendezvous.epoch} has ended; open a fresh one")
        cargo.lend()
        try:
            self._inbox.put_nowait(cargo)
        except queue.Full:
            cargo.give_back()
            raise NotReady(
                f"epoch {self.rendezvous.epoch} has not begun its former transfer; open a fresh one"
            ) from None
        self.busy = True

    def retire(self) -> None:
        """Ends the thread after its running operation."""
        self._ended.set()
        with contextlib.suppress(
            queue.Full
        ):  # full: the thread is at work and looks at `_ended` before the next bucket
            self._inbox.put_nowait(None)

    def _run(self) -> None:
        group: TransferGroup | None = None
        try:
            group = join(self.rendezvous, backend=self.backend)
            while not self._ended.is_set() and (cargo := self._inbox.get()) is not None:
                try:
                    self._send_buckets(group, cargo)
                finally:
                    cargo.give_back()
                del cargo  # its memory is free for a later version
                self.busy = not self._inbox.empty()
        except TransferError as error:
            self._log.warning("weights_transfer_failed", error=str(error))
        finally:
            self._ended.set()
            self.busy = False
            self._give_back_what_waits()
            if group is not None:
                group.close()

    def _give_back_what_waits(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                if (cargo := self._inbox.get_nowait()) is not None:
                    cargo.give_back()

    def _send_buckets(self, group: TransferGroup, cargo: Cargo) -> None:
        started, count = time.monotonic(), len(cargo.payload.bucket_digests)
        first = learn_first(group)
        if not 0 <= first <= count:
            raise TransferError(f"the receiver asks for bucket {first} of {count}")
        for bucket in range(first, count):
            data = cargo.wait(bucket, timeout_s=self.rendezvous.timeout_s)
            if self._ended.is_set():
                return
            group.broadcast(data)
        elapsed_ms = 1e3 * (time.monotonic() - started)
        self._log.debug("weights_sent", payload=cargo.payload.id[:16], first=first, send_ms=round(elapsed_ms, 1))


def learn_first(group: TransferGroup) -> int:
    """At a source: the bucket that the receiver lacks first. Raises TransferError."""
    told = np.zeros(8, np.uint8)
    group.broadcast(told, root=RECEIVER_RANK)
    return int(told.view("<i8")[0])


def tell_first(group: TransferGroup, bucket: int) -> None:
    """At a receiver: has the source begin with that bucket. Raises TransferError."""
    group.broadcast(np.array([bucket], "<i8").view(np.uint8), root=RECEIVER_RANK)
