"""The rollout's end: receives one version in the background into a staging buffer, verifies the version, hands it over.

The engine applies the version. Waits: the receiving thread for the source, at most the epoch's `timeout_s` per bucket;
`result` for the receiving thread. A transfer that dies changes nothing else: its group is dropped, the old weights keep
serving, and the next transfer needs a fresh epoch. If that transfer is of the same payload, it goes on at the first bucket
that is lacking, from whichever source.

    (no epoch) --join--> joined --begin--> receiving --ok--> joined
                                              \\--error--> (no epoch)
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from blake3 import blake3

from sluice.errors import Expired, NotReady, TransferError
from sluice.weights import files
from sluice.weights.backends import Collective, Rendezvous, TransferGroup, join
from sluice.weights.cargo import Cargo
from sluice.weights.links import tell_first
from sluice.weights.manifest import Manifest, new_digest
from sluice.weights.payload import Payload

T = TypeVar("T")

JOIN_SLACK_S = 1.0
"""How much longer than its limit a join may take before its thread is left behind: the join's own error says more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """One verified version."""

    manifest: Manifest
    buffer: np.ndarray = field(repr=False)
    """uint8[total_bytes]."""
    digest: str
    """Computed over the received bytes; equals the manifest's digest."""
    receive_ms: float
    """From `begin` to the last byte."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arrival:
    """A version on its way here, which outlives the epochs that bring it."""

    manifest: Manifest
    cargo: Cargo
    hasher: blake3
    """Fed every verified byte of a dense payload."""
    started: float
    """Clock: monotonic."""


class WeightReceiver:
    """Receives versions for one rollout. Methods block, so an event loop calls them in threads; a `join` ends older waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Guards the seven fields below; never held while waiting."""
        self._epoch: str | None = None
        self._group: TransferGroup | None = None
        self._pending: Future[Received] | None = None
        self._arrival: _Arrival | None = None
        self._last: Cargo | None = None
        """The cargo that arrived last, until the next one arrives."""
        self._spare: np.ndarray | None = None
        self._threads: list[threading.Thread] = []
        atexit.register(self.close)  # a thread inside gloo at interpreter exit would abort the process

    def join(self, rendezvous: Rendezvous, *, backend: Collective) -> None:
        """Joins a fresh epoch and leaves the former epoch. Raises TransferError when the learner does not join in time."""
        with self._lock:
            self._leave()
            self._epoch = rendezvous.epoch
        group = _join_in_time(rendezvous, backend)
        with self._lock:
            if self._epoch == rendezvous.epoch:
                self._group = group
                return
        group.close()
        raise TransferError(f"epoch {rendezvous.epoch}: given up for a newer one while joining")

    def begin(self, *, epoch: str, manifest: Manifest, payload: Payload | None = None, file_path: str = "") -> None:
        """Starts receiving a payload; with `file_path` reads the file and needs neither payload nor epoch.

        Raises NotReady when the epoch was not joined, when the epoch has failed, or when another receive is under way.
        """
        with self._lock:
            if self._pending is not None and not self._pending.done():
                raise NotReady("a receive is under way; wait for it, or join a fresh epoch to give it up")
            if file_path:
                source: Callable[[], Received] = lambda: _read(Path(file_path), manifest)  # noqa: E731
            else:
                group = self._group
                if group is None or self._epoch != epoch:
                    raise NotReady(f"epoch {epoch} was not joined or has failed; join a fresh one")
                assert payload is not None
                arrival = self._arrival_of(manifest, payload)
                source = lambda: _receive(group, arrival)  # noqa: E731
            self._pending = Future()
            thread = threading.Thread(target=_fulfil, args=(self._pending, source), name="weights-receive", daemon=True)
            self._threads = [*(former for former in self._threads if former.is_alive()), thread]
            thread.start()

    def result(self, *, timeout_s: float) -> Received:
        """Waits for the receive that `begin` started; the caller owns the buffer until `recycle`.

        Raises TransferError when the receive failed or the digest is wrong, Expired when the receive takes longer than
        `timeout_s` (both end the epoch), and NotReady without a receive.
        """
        with self._lock:
            pending = self._pending
        if pending is None:
            raise NotReady("no receive was begun")
        try:
            received = pending.result(timeout_s)
        except TimeoutError:
            self._give_up(pending)
            raise Expired(f"weights were still arriving after {timeout_s:g} s; join a fresh epoch") from None
        except BaseException:  # after any failure this end's group is out of step with the learner's end
            self._give_up(pending)
            raise
        with self._lock:
            if self._pending is pending:
                self._last = self._arrival.cargo if self._arrival is not None else None
                self._pending = self._arrival = None
        return received

    @property
    def cargo(self) -> Cargo | None:
        """What arrives, or what arrived last; None before the first payload and after a file."""
        with self._lock:
            return self._last if self._arrival is None else self._arrival.cargo

    @contextlib.contextmanager
    def lent(self, payload_id: str) -> Iterator[Cargo]:
        """The cargo of a payload that arrives or arrived last, whose buffer takes no other bytes within the block.

        Raises NotReady when this receiver has another payload, or none.
        """
        with self._lock:
            cargo = self._last if self._arrival is None else self._arrival.cargo
            if cargo is None or cargo.has_failed or cargo.payload.id != payload_id:
                has = "nothing" if cargo is None else f"payload {cargo.payload.id[:16]}"
                raise NotReady(f"this rollout has {has}, not payload {payload_id[:16]}")
            cargo.lend()
        try:
            yield cargo
        finally:
            cargo.give_back()

    def recycle(self, received: Received) -> None:
        """Gives the buffer back for a later receive."""
        with self._lock:
            if received.buffer.flags.writeable:
                self._spare = received.buffer

    def close(self) -> None:
        """Leaves the epoch; waits for receiving threads, each at most for its running operation."""
        atexit.unregister(self.close)
        with self._lock:
            self._leave()
            threads = self._threads
        for thread in threads:
            thread.join()

    def _give_up(self, pending: "Future[Received]") -> None:
        with self._lock:
            if self._pending is pending:
                self._leave()

    def _leave(self) -> None:
        """Forgets epoch and group. A receive under way keeps its own references to group and buffer and ends with its
        running operation at the latest; nobody reads the result."""
        busy = self._pending is not None and not self._pending.done()
        if self._group is not None and not busy:
            self._group.close()
        self._group = self._epoch = self._pending = None

    def _arrival_of(self, manifest: Manifest, payload: Payload) -> _Arrival:
        """What has already arrived of this payload, or nothing in a buffer of its own."""
        former = self._arrival
        if former is not None:
            same = former.cargo.payload.id == payload.id and former.manifest == manifest
            if same and not former.cargo.has_failed:
                return former
            former.cargo.fail(TransferError(f"{former.manifest.version}: given up for {manifest.version}"))
            if not former.cargo.is_lent:
                self._spare = former.cargo.buffer
        hasher = new_digest(manifest.tensors)
        cargo = Cargo(payload, self._take_spare(payload.total_bytes), hasher=hasher)
        self._arrival = _Arrival(manifest=manifest, cargo=cargo, hasher=hasher, started=time.monotonic())
        return self._arrival

    def _take_spare(self, total_bytes: int) -> np.ndarray:
        spare, self._spare = self._spare, None
        last, self._last = self._last, None
        if last is not None and last.is_lent and spare is last.buffer:
            spare = None  # links still send the version that it holds
        return spare if spare is not None and spare.size == total_bytes else np.empty(total_bytes, np.uint8)


def _join_in_time(rendezvous: Rendezvous, backend: Collective) -> TransferGroup:
    """`join` in a thread that is left behind at the deadline: torch's store client waits for ever for a learner that
    accepts the connection and then says nothing. The thread ends with the connection."""
    joined: Future[TransferGroup] = Future()
    source = lambda: join(rendezvous, backend=backend)  # noqa: E731
    threading.Thread(target=_fulfil, args=(joined, source), name="weights-join", daemon=True).start()
    try:
        return joined.result(rendezvous.timeout_s + JOIN_SLACK_S)
    except TimeoutError:
        joined.add_done_callback(_close_late)
        raise TransferError(
            f"epoch {rendezvous.epoch}: the learner at {rendezvous.host}:{rendezvous.port} took the connection and did "
            f"not answer within {rendezvous.timeout_s:g} s"
        ) from None


def _close_late(joined: Future[TransferGroup]) -> None:
    if joined.exception() is None:
        joined.result().close()


def _receive(group: TransferGroup, arrival: _Arrival) -> Received:
    cargo, payload = arrival.cargo, arrival.cargo.payload
    arriving = np.empty(min(payload.bucket_bytes, payload.total_bytes), np.uint8)
    tell_first(group, cargo.verified)
    for bucket in range(cargo.verified, len(payload.bucket_digests)):
        bounds = payload.bounds(bucket)
        part = arriving[: bounds.stop - bounds.start]
        group.broadcast(part)
        cargo.accept(bucket, part)
    try:
        return _verified(arrival.manifest, cargo.buffer, arrival.hasher.hexdigest(), arrival.started)
    except TransferError as error:
        cargo.fail(error)  # it is whole and wrong: nothing of it may be kept
        raise


def _read(path: Path, manifest: Manifest) -> Received:
    started = time.monotonic()
    snapshot = files.read_snapshot(path)
    if snapshot.manifest.tensors != manifest.tensors:
        raise TransferError(f"{path}: does not hold the tensors that were announced for {manifest.version}")
    return _verified(manifest, snapshot.buffer, snapshot.manifest.digest, started)


def _verified(manifest: Manifest, buffer: np.ndarray, digest: str, started: float) -> Received:
    if digest != manifest.digest:
        raise TransferError(
            f"{manifest.version}: digest of the received bytes is {digest[:16]}..., announced was "
            f"{manifest.digest[:16]}...; the old weights stay"
        )
    elapsed_ms = 1e3 * (time.monotonic() - started)
    return Received(manifest=manifest, buffer=buffer, digest=digest, receive_ms=elapsed_ms)


def _fulfil(future: Future[T], source: Callable[[], T]) -> None:
    try:
        future.set_result(source())
    except BaseException as error:  # noqa: BLE001 - handed to the waiter of the future, nothing is swallowed
        future.set_exception(error)
