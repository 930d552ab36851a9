"""The rollout's end: receives one version in the background into a staging buffer, verifies the version, hands it over.

The engine applies the version. Waits: the receiving thread for the source, at most the epoch's `timeout_s` per bucket;
`result` for the receiving thread. A transfer that dies changes nothing else: its group is dropped, the old weights keep
serving, and the next transfer needs a fresh epoch. If that transfer is of the same payload, it goes on at the first bucket
that is lacking, from whichever source. Nothing is sent where another process of this machine has the version already.

    (no epoch) --join--> joined --begin--> receiving --ok--> joined
                                              \\--error--> (no epoch)
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from blake3 import blake3

from sluice.errors import Expired, NotReady, TransferError
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.weights import flights, lending, snapshot_files, staging
from sluice.weights.backends import Carrier, Collective, Rendezvous, TransferGroup, join, join_limit_s
from sluice.weights.cargo import Cargo
from sluice.weights.fetching import FetchedGroup
from sluice.weights.held import HeldVersion, rebuilt
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
    base: np.ndarray | None = field(repr=False)
    """For a delta: the base's bytes, uint8[manifest.total_bytes]."""
    started: float
    """Clock: monotonic."""


class WeightReceiver:
    """Receives versions for one rollout. Methods block, so an event loop calls them in threads; a `join` ends older waits."""

    def __init__(
        self,
        *,
        shares: bool = False,
        keeps_base: bool = False,
        threads: int = 1,
        digest_threads: int = 1,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> None:
        """With `shares` this process lends the versions that it has verified to other processes of the machine, and maps
        theirs in place of receiving bytes (lending.py). With `keeps_base` the version that was recycled last stays in memory,
        and its deltas are taken (`threads` apply them). `digest_threads`: threads that digest what arrives; blake3.AUTO takes
        all cores. `credentials` are shown to sources over gRPC."""
        self._shares, self._digest_threads, self._credentials = shares, digest_threads, credentials
        self._lock = threading.Lock()
        """Guards the fields below; never held while waiting."""
        self._held = HeldVersion(keeps=keeps_base, threads=threads)
        self._epoch: str | None = None
        self._group: TransferGroup | None = None
        self._pending: Future[Received] | None = None
        self._arrival: _Arrival | None = None
        self._last: Cargo | None = None
        """The cargo that arrived last, until the next one arrives."""
        self._lent: list[Cargo] = []
        """Cargoes that links may still send."""
        self._spare: np.ndarray | None = None
        self._threads: list[threading.Thread] = []
        atexit.register(self.close)  # a thread inside gloo at interpreter exit would abort the process

    def join(self, rendezvous: Rendezvous, *, backend: Carrier) -> None:
        """Joins a fresh epoch and leaves the former epoch. Raises TransferError when the learner does not join in time.

        Over gRPC nobody is waited for: the source is called with the first bucket. Raises ConfigError when the credentials
        must not be shown to it.
        """
        with self._lock:
            self._leave()
            self._epoch = rendezvous.epoch
        if backend == "grpc":
            group: TransferGroup = FetchedGroup(rendezvous, credentials=self._credentials)
        else:
            group = _join_in_time(rendezvous, backend)
        with self._lock:
            if self._epoch == rendezvous.epoch:
                self._group = group
                return
        group.close()
        raise TransferError(f"epoch {rendezvous.epoch}: given up for a newer one while joining")

    def begin(self, *, epoch: str, manifest: Manifest, payload: Payload | None = None, file_path: str = "") -> None:
        """Starts receiving a payload; with `file_path` reads the file and needs neither payload nor epoch.

        Raises NotReady when the epoch was not joined, when the epoch has failed, when another receive is under way, or for a
        delta from a version other than the one held here.
        """
        with self._lock:
            if self._pending is not None and not self._pending.done():
                raise NotReady("a receive is under way; wait for it, or join a fresh epoch to give it up")
            source: Callable[[], Received]
            if file_path:
                source = lambda: self._borrow(manifest) or _read(Path(file_path), manifest)  # noqa: E731
            else:
                group = self._group
                if group is None or self._epoch != epoch:
                    raise NotReady(f"epoch {epoch} was not joined or has failed; join a fresh one")
                assert payload is not None
                arrival = self._arrival_of(manifest, payload)
                source = lambda: self._borrow_in_place_of(arrival, group) or self._receive(group, arrival)  # noqa: E731
            self._pending = Future()
            work = (self._pending, lambda: self._announced(source()))
            thread = threading.Thread(target=_fulfil, args=work, name="weights-receive", daemon=True)
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
            self._lent.append(cargo)
        try:
            yield cargo
        finally:
            cargo.give_back()

    def recycle(self, received: Received) -> None:
        """Gives the buffer back when the engine has the version: as the base of deltas, or for a later receive."""
        with self._lock:
            self._spare_is(self._held.replace(received.manifest, received.buffer))

    def close(self) -> None:
        """Leaves the epoch; waits for receiving threads, each at most for its running operation. Who waits here for a bucket
        to pass on is told at once."""
        atexit.unregister(self.close)
        with self._lock:
            if self._arrival is not None:
                self._arrival.cargo.fail(TransferError("this rollout is leaving"))
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
            if former.base is None:
                self._spare_is(former.cargo.buffer)
        base, hasher = self._held.base_of(payload), new_digest(manifest.tensors, threads=self._digest_threads)
        if base is None:
            buffer = self._take_spare(payload.total_bytes)
            cargo = Cargo(payload, buffer, hasher=hasher, digest_threads=self._digest_threads)
        else:
            cargo = Cargo(payload, np.empty(payload.total_bytes, np.uint8), digest_threads=self._digest_threads)
        self._arrival = _Arrival(manifest=manifest, cargo=cargo, hasher=hasher, base=base, started=time.monotonic())
        return self._arrival

    def _borrow_in_place_of(self, arrival: _Arrival, group: TransferGroup) -> Received | None:
        """The version, if another process of this machine has it whole; the source then sends nothing."""
        if (received := self._borrow(arrival.manifest)) is None:
            return None
        cargo, payload = arrival.cargo, arrival.cargo.payload
        tell_first(group, len(payload.bucket_digests))
        if payload.encoding == "dense":
            cargo.take_whole(received.buffer)
        else:
            cargo.fail(
                TransferError(f"{arrival.manifest.version}: was borrowed here, so its {payload.encoding} is not here")
            )
        return received

    def _borrow(self, manifest: Manifest) -> Received | None:
        """The digest was computed by the process that received the bytes, and nobody can have written since."""
        started = time.monotonic()
        buffer = lending.find(manifest.digest, total_bytes=manifest.total_bytes) if self._shares else None
        return None if buffer is None else _verified(manifest, buffer, manifest.digest, started)

    def _announced(self, received: Received) -> Received:
        if self._shares:
            lending.announce(received.buffer, digest=received.digest)
        return received

    def _receive(self, group: TransferGroup, arrival: _Arrival) -> Received:
        manifest, cargo = arrival.manifest, arrival.cargo
        _fill(cargo, group)
        try:
            if arrival.base is None:
                return _verified(manifest, cargo.buffer, arrival.hasher.hexdigest(), arrival.started)
            with self._lock:
                buffer = self._take_spare(manifest.total_bytes)
            digest = rebuilt(arrival.base, cargo.buffer, manifest, into=buffer, threads=self._held.threads)
            return _verified(manifest, buffer, digest, arrival.started)
        except TransferError as error:
            cargo.fail(error)  # it is whole and wrong: nothing of it may be kept
            raise

    def _spare_is(self, buffer: np.ndarray | None) -> None:
        if buffer is not None and buffer.flags.writeable:
            self._spare = buffer

    def _take_spare(self, total_bytes: int) -> np.ndarray:
        spare, self._spare = self._spare, None
        self._lent = [cargo for cargo in self._lent if cargo.is_lent]
        sent = any(cargo.buffer is spare for cargo in self._lent)  # links still send the version that it holds
        if spare is not None and not sent and spare.size == total_bytes and staging.reclaim(spare):
            return spare
        return staging.new(total_bytes)


def _join_in_time(rendezvous: Rendezvous, backend: Collective) -> TransferGroup:
    """`join` in a thread that is left behind at the deadline: torch's store client waits for ever for a learner that
    accepts the connection and then says nothing. The thread ends with the connection."""
    joined: Future[TransferGroup] = Future()
    source = lambda: join(rendezvous, backend=backend)  # noqa: E731
    limit_s = join_limit_s(backend, rendezvous.timeout_s)
    threading.Thread(target=_fulfil, args=(joined, source), name="weights-join", daemon=True).start()
    try:
        return joined.result(limit_s + JOIN_SLACK_S)
    except TimeoutError:
        joined.add_done_callback(_close_late)
        raise TransferError(
            f"epoch {rendezvous.epoch}: the learner at {rendezvous.host}:{rendezvous.port} took the connection and did "
            f"not answer within {limit_s:g} s"
        ) from None


def _close_late(joined: Future[TransferGroup]) -> None:
    if joined.exception() is None:
        joined.result().close()


def _fill(cargo: Cargo, group: TransferGroup) -> None:
    """Receives the buckets that the cargo lacks."""
    first = cargo.verified
    tell_first(group, first)
    with closing(flights.receive(group, _rooms(cargo.payload, first))) as arriving:
        for bucket, part in enumerate(arriving, first):
            cargo.accept(bucket, part)
    group.rest()


def _rooms(payload: Payload, first: int) -> Iterator[np.ndarray]:
    """Memory for the buckets from `first` on to arrive in: as many pieces, in turns, as buckets can be under way."""
    pieces = [np.empty(min(payload.bucket_bytes, payload.total_bytes), np.uint8) for _ in range(flights.DEPTH)]
    for bucket in range(first, len(payload.bucket_digests)):
        bounds = payload.bounds(bucket)
        yield pieces[bucket % flights.DEPTH][: bounds.stop - bounds.start]


def _read(path: Path, manifest: Manifest) -> Received:
    started = time.monotonic()
    snapshot = snapshot_files.read_snapshot(path)
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
