"""The learner's end: holds the newest snapshot and sends the snapshot to each receiver at the receiver's own pace.

One thread per receiver and membership epoch: the thread joins, sends the opened snapshot, then waits for the next `open`
of the same epoch or for its retirement. No failure of a transfer reaches the learner: a failure is logged, counted and
ends its own epoch alone; the coordinator hears of the failure from the receiver. A send that returns proves nothing; only
the receiver's acknowledgement proves that a version arrived.

    opened --join--> sending --done--> idle --open--> sending ...
       any state --error or a newer epoch of the same rollout--> ended
"""

import atexit
import contextlib
import queue
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from sluice.accelerator import CPU, backend_between
from sluice.errors import DiskFull, NotReady, Overloaded, TransferError, Unavailable
from sluice.run_dir.full_disk import is_full
from sluice.weights import files
from sluice.weights.backends import ROOT_RANK, Collective, Rendezvous, TransferGroup, TransferStore, join
from sluice.weights.manifest import Manifest, buckets
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)

MAX_LINKS = 1024
"""Sender threads at once, including ended epochs whose last operation still runs; chosen: 4 x 256 rollouts."""

KEPT_VERSIONS = 4
"""A rollout that has taken none of so many versions is forgotten: its epoch ends, and its file may be removed. A forgotten
rollout that comes back needs a fresh epoch. Chosen: above any usual delay, and few enough files to keep at once."""

PAIR = 2
"""World size of a transfer group: the learner and one receiver."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedTransfer:
    """The facts that a receiver needs; mirrors the proto `OpenTransferResponse`."""

    manifest: Manifest
    backend: Literal["gloo", "nccl", "file"]
    store_host: str = ""
    store_port: int = 0
    secret: str = ""
    file_path: str = ""
    new_epoch: bool = False


class WeightSender:
    """Thread-safe. Receivers reach this machine at `host`; the store listens on `bind`."""

    def __init__(
        self,
        *,
        backend: Literal["auto", "gloo", "nccl", "file"],
        host: str,
        device: str = CPU,
        bind: str = "127.0.0.1",
        port: int = 0,
        directory: Path | None = None,
    ) -> None:
        """`directory` takes the files of `file` transfers. `auto` is gloo or nccl for each receiver, by its device and
        this process's `device` (sluice/accelerator.py). Raises OSError when the store cannot listen."""
        if backend == "file" and directory is None:
            raise ValueError("weights.backend=file needs a directory that rollouts can read")
        self._backend: Literal["auto", "gloo", "nccl", "file"] = backend
        self._host, self._device = host, device
        self._directory = directory
        self._store = TransferStore(bind=bind, port=port) if backend != "file" else None
        self._lock = threading.Lock()
        self._newest: Snapshot | None = None
        self._links: dict[str, _Link] = {}
        self._retired: list[_Link] = []
        self._published = 0
        self._writing = threading.Lock()
        """Guards the files, apart from the other fields because writing takes long."""
        self._told: dict[str, tuple[int, Path]] = {}
        """By rollout: the publication that the rollout was told of last, and the publication's file."""
        self._written: Path | None = None
        """The newest file that this process wrote."""
        self._closed = False
        atexit.register(self.close)  # a thread inside gloo at interpreter exit would abort the process

    @property
    def newest(self) -> Snapshot | None:
        """The snapshot that the next `open` sends."""
        return self._newest

    def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the snapshot to send; transfers under way go on with their own snapshots."""
        with self._lock:
            self._newest = snapshot
            self._published += 1
            idle = [name for name, link in self._links.items() if not link.busy and self._is_forgotten(link.opened_at)]
            for rollout_id in idle:
                self._retire(rollout_id)

    def open(self, *, rollout_id: str, epoch: str, timeout_s: float, receiver_device: str = "") -> OpenedTransfer:
        """Begins sending the newest snapshot to one receiver; returns at once (`file`: when the file is written).

        An epoch keeps the backend with which it began.
        Raises NotReady when nothing is published yet or the epoch has ended or is busy (then open a fresh one),
        Overloaded at MAX_LINKS, Unavailable when the disk refuses the file.
        """
        snapshot = self._newest
        if snapshot is None:
            raise NotReady("the learner has published no weights yet")
        if self._backend == "file":
            with self._writing:
                path = self._write(snapshot, rollout_id)
            return OpenedTransfer(manifest=snapshot.manifest, backend="file", file_path=str(path))
        with self._lock:
            if self._closed:
                raise NotReady("the learner is closing")
            link = self._links.get(rollout_id)
            new_epoch = link is None or link.epoch != epoch
            if new_epoch:
                chosen = backend_between(self._device, receiver_device) if self._backend == "auto" else self._backend
                link = self._start_link(chosen, rollout_id, epoch, timeout_s)
            assert link is not None
            link.opened_at = self._published
            link.send(snapshot)
        return OpenedTransfer(
            manifest=snapshot.manifest,
            backend=link.backend,
            store_host=self._host,
            store_port=link.rendezvous.port,
            secret=link.rendezvous.secret,
            new_epoch=new_epoch,
        )

    def close(self) -> None:
        """Retires every epoch; waits for the senders' threads, for each thread at most until its running operation ends."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._retired]
            self._links.clear()
        for link in links:
            link.retire()
        for link in links:
            link.thread.join()

    def _write(self, snapshot: Snapshot, rollout_id: str) -> Path:
        """Writes the snapshot's file. Removes other files, a former learner's too, unless a rollout may still read them."""
        assert self._directory is not None
        self._told.pop(rollout_id, None)  # the rollout asks again, so it no longer reads its former file
        self._told = {name: told for name, told in self._told.items() if not self._is_forgotten(told[0])}
        try:
            newest = files.path_of(self._directory, snapshot.manifest)
            files.prune(self._directory, keep={newest, *(path for _, path in self._told.values())})
            path = files.write_snapshot(self._directory, snapshot, anew=newest != self._written)
            self._written = path
        except OSError as error:
            raise (DiskFull if is_full(error) else Unavailable)(
                f"version {snapshot.manifest.version} could not be written for rollouts to read: {error}; make room in "
                f"{self._directory}"
            ) from error
        self._told[rollout_id] = (self._published, path)
        return path

    def _is_forgotten(self, publication: int) -> bool:
        return self._published - publication >= KEPT_VERSIONS

    def _retire(self, rollout_id: str) -> None:
        self._retired = [link for link in self._retired if link.thread.is_alive()]
        if (former := self._links.pop(rollout_id, None)) is not None:
            former.retire()
            self._retired.append(former)

    def _start_link(self, backend: Collective, rollout_id: str, epoch: str, timeout_s: float) -> "_Link":
        assert self._store is not None
        self._retire(rollout_id)
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
        link = _Link(rollout_id, rendezvous, backend)
        self._links[rollout_id] = link
        link.thread.start()
        return link


class _Link:
    """One epoch of one receiver, and the thread that serves it."""

    def __init__(self, rollout_id: str, rendezvous: Rendezvous, backend: Collective) -> None:
        self.epoch = rendezvous.epoch
        self.rendezvous = rendezvous
        self.opened_at = 0
        """The number of the publication that this epoch was opened for last."""
        self.busy = False
        """Whether this epoch has a snapshot to send."""
        self.thread = threading.Thread(target=self._run, name=f"weights-{rollout_id}", daemon=True)
        self.backend: Collective = backend
        self._inbox: queue.Queue[Snapshot | None] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        self._log = log.bind(rollout_id=rollout_id, epoch=self.epoch)

    def send(self, snapshot: Snapshot) -> None:
        """Queues one snapshot. Raises NotReady when the epoch has ended or another snapshot still waits."""
        if self._ended.is_set():
            raise NotReady(f"epoch {self.epoch} has ended; open a fresh one")
        try:
            self._inbox.put_nowait(snapshot)
        except queue.Full:
            raise NotReady(f"epoch {self.epoch} has not begun its former transfer; open a fresh one") from None
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
            while not self._ended.is_set() and (snapshot := self._inbox.get()) is not None:
                self._send_buckets(group, snapshot)
                self.busy = not self._inbox.empty()
        except TransferError as error:
            self._log.warning("weights_transfer_failed", error=str(error))
        finally:
            self._ended.set()
            self.busy = False
            if group is not None:
                group.close()

    def _send_buckets(self, group: TransferGroup, snapshot: Snapshot) -> None:
        manifest, started = snapshot.manifest, time.monotonic()
        for part in buckets(manifest.total_bytes, manifest.bucket_bytes):
            if self._ended.is_set():
                return
            group.broadcast(snapshot.buffer[part])
        elapsed_ms = 1e3 * (time.monotonic() - started)
        self._log.debug("weights_sent", version=str(manifest.version), send_ms=round(elapsed_ms, 1))
