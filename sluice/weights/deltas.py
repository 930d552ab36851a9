"""The deltas that a learner can send: made once a version in a thread of their own, beside training, and kept as a chain.

A snapshot is kept as a base only until the delta from it is made, so that at most one former version is in memory beside
the newest. When versions are published faster than deltas are made, those between are passed over. A chain ends where a
delta would be longer than allowed, at another lineage and at other tensors: whoever holds a version before gets the whole.

 who waits            for what                                      unblocked by
 the thread           a newer version                               `publish`, `close`
 `cargo`              the delta to the newest version, if the       the thread, its own limit, `close`
                      receiver could use the delta
"""

import itertools
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import structlog

from sluice.policy_version import PolicyVersion
from sluice.weights import delta
from sluice.weights.cargo import Cargo
from sluice.weights.payload import Payload, digests_of
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)

MOST_PASSED = 32
"""Versions that are passed over at most after deltas that were too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A version that a receiver holds, by its own acknowledgement."""

    version: PolicyVersion
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Delta:
    """The bytes from `base` to the next version of the chain."""

    base: Held
    data: bytes = field(repr=False)


def threads_beside(*, on_cuda: bool) -> int:
    """Threads that make or apply a delta: one where the CPU computes the model, else a quarter of the cores, at most 8."""
    return max(1, min(8, (os.cpu_count() or 1) // 4)) if on_cuda else 1


class Deltas:
    """Thread-safe; `publish` never blocks."""

    def __init__(self, *, most_share: float, threads: int = 1) -> None:
        """Deltas and chains of more than `most_share` of the version's bytes are not sent."""
        self._share, self._threads = most_share, threads
        self._packing = threading.Lock()
        """Held while buckets are digested, which takes long, so apart from `_changed`."""
        self._changed = threading.Condition()
        """Guards what follows; never held for long."""
        self._newest: Snapshot | None = None
        self._base: Snapshot | None = None
        """The version that the chain ends with, or begins with while there is none."""
        self._chain: deque[_Delta] = deque()
        self._cargoes: dict[tuple[Held, Held], Cargo] = {}
        """By what the receiver holds, and `_base`."""
        self._pass, self._passed = 0, 0
        """Versions to pass over, and how many after the delta that was too long last."""
        self._closed = False
        self._thread: threading.Thread | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Has the delta to `snapshot` made."""
        with self._changed:
            self._newest = snapshot
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="deltas", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def cargo(self, held: Held, snapshot: Snapshot, *, wait_s: float) -> Cargo | None:
        """The bytes that bring a receiver from `held` to `snapshot`, if they are shorter than allowed; waits for them."""
        with self._changed:
            deadline = time.monotonic() + wait_s
            while snapshot is self._newest and self._base is not snapshot and self._may_reach(held):
                if self._closed or not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return None
            if self._base is not snapshot:
                return None
            chain = self._from(held)
        return self._packed(held, chain, snapshot) if chain else None

    def close(self) -> None:
        """Ends the thread; a delta under way is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _packed(self, held: Held, chain: list[_Delta], snapshot: Snapshot) -> Cargo:
        """The cargo of a chain, made once a version and base."""
        ends = (held, _held(snapshot))
        with self._packing:
            if (made := self._cargoes.get(ends)) is None:
                made = _cargo(chain, snapshot)
                with self._changed:
                    if self._base is snapshot:
                        self._cargoes[ends] = made
            return made

    def _may_reach(self, held: Held) -> bool:
        return self._base is not None and (held == _held(self._base) or bool(self._from(held)))

    def _from(self, held: Held) -> list[_Delta]:
        return list(itertools.dropwhile(lambda each: each.base != held, self._chain))

    def _run(self) -> None:
        while (job := self._next()) is not None:
            base, target = job
            made = None if base is None else self._made(base, target)
            with self._changed:
                self._take(made, target)
            del job, base, target  # their memory is free for a later version

    def _next(self) -> tuple[Snapshot | None, Snapshot] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest is not self._base)
            if self._closed:
                return None
            assert self._newest is not None
            return self._base, self._newest

    def _made(self, base: Snapshot, target: Snapshot) -> _Delta | None:
        former, manifest = base.manifest, target.manifest
        if former.version.lineage != manifest.version.lineage or former.tensors != manifest.tensors:
            return None
        if self._pass:
            self._pass -= 1
            return None
        started = time.monotonic()
        data = self._encoded(base, target)
        elapsed_ms = round(1e3 * (time.monotonic() - started), 1)
        if data is None:
            self._pass = self._passed = min(MOST_PASSED, 2 * self._passed + 1)
            log.info("delta_does_not_pay", version=str(manifest.version), most=self._share, encode_ms=elapsed_ms)
            return None
        self._passed = 0
        share = round(len(data) / max(1, manifest.total_bytes), 4)
        log.debug("delta_made", version=str(manifest.version), share=share, encode_ms=elapsed_ms)
        return _Delta(base=_held(base), data=data)

    def _encoded(self, base: Snapshot, target: Snapshot) -> bytes | None:
        try:
            return delta.encode(
                base.buffer,
                target.buffer,
                target.manifest.tensors,
                most_bytes=int(self._share * target.manifest.total_bytes),
                threads=self._threads,
                given_up=lambda: self._closed,
            )
        except MemoryError:  # training needs the memory more than a delta does
            log.warning("delta_without_memory", version=str(target.manifest.version))
            return None

    def _take(self, made: _Delta | None, target: Snapshot) -> None:
        if made is None:
            self._chain.clear()
        else:
            self._chain.append(made)
        most = self._share * target.manifest.total_bytes
        while len(self._chain) > delta.MAX_CHAIN or sum(len(each.data) for each in self._chain) > most:
            self._chain.popleft()
        self._base = target
        self._cargoes.clear()
        self._changed.notify_all()


def _held(snapshot: Snapshot) -> Held:
    return Held(version=snapshot.manifest.version, digest=snapshot.manifest.digest)


def _cargo(chain: list[_Delta], snapshot: Snapshot) -> Cargo:
    buffer = np.frombuffer(b"".join(each.data for each in chain), np.uint8)
    bucket_bytes = snapshot.manifest.bucket_bytes
    described = Payload(
        encoding="delta",
        total_bytes=buffer.size,
        bucket_bytes=bucket_bytes,
        bucket_digests=digests_of(buffer, bucket_bytes),
        base=chain[0].base.version,
        base_digest=chain[0].base.digest,
    )
    return Cargo.whole(described, buffer)
