"""The learner's end: holds the newest snapshot and sends the snapshot to each receiver at the receiver's own pace.

No failure of a transfer reaches the learner (links.py). Files need no link: rollouts read them where they can.
"""

import atexit
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blake3 import blake3

from sluice.accelerator import CPU, backend_between
from sluice.errors import DiskFull, NotReady, Unavailable
from sluice.run_dir.full_disk import is_full
from sluice.weights import payload, snapshot_files
from sluice.weights.cargo import Cargo
from sluice.weights.deltas import Deltas, Held
from sluice.weights.links import Links
from sluice.weights.manifest import Manifest
from sluice.weights.payload import Payload
from sluice.weights.snapshot import Snapshot

KEPT_VERSIONS = 4
"""A rollout that has taken none of so many versions is forgotten: its epoch ends, and its file may be removed. A forgotten
rollout that comes back needs a fresh epoch. Chosen: above any usual delay, and few enough files to keep at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedTransfer:
    """The facts that a receiver needs; mirrors the proto `OpenTransferResponse`."""

    manifest: Manifest
    backend: Literal["gloo", "nccl", "grpc", "file"]
    payload: Payload | None = None
    """None with `file`."""
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
        backend: Literal["auto", "gloo", "nccl", "grpc", "file"],
        host: str,
        device: str = CPU,
        bind: str = "127.0.0.1",
        port: int = 0,
        directory: Path | None = None,
        deltas: Deltas | None = None,
    ) -> None:
        """`directory` takes the files of `file` transfers. `auto` is gloo or nccl for each receiver, by its device and
        this process's `device` (sluice/accelerator.py). Without `deltas` every version travels whole, as files do.
        Raises OSError when the store cannot listen."""
        if backend == "file" and directory is None:
            raise ValueError("weights.backend=file needs a directory that rollouts can read")
        self._backend: Literal["auto", "gloo", "nccl", "grpc", "file"] = backend
        self._device = device
        self._directory = directory
        self._deltas = deltas if backend != "file" else None
        self.links = Links(host=host, bind=bind, port=port, meets=backend != "grpc") if backend != "file" else None
        self._lock = threading.Lock()
        self._newest: Snapshot | None = None
        self._opened_at: dict[str, int] = {}
        """By rollout: the number of the publication that it asked for last, over a link."""
        self._published = 0
        self._packing = threading.Lock()
        """Held while buckets are digested, which takes long, so apart from `_lock`."""
        self._cargo: tuple[Snapshot, Cargo] | None = None
        self._writing = threading.Lock()
        """Guards the files, apart from the other fields because writing takes long."""
        self._told: dict[str, tuple[int, Path]] = {}
        """By rollout: the publication that the rollout was told of last, and the publication's file."""
        self._written: Path | None = None
        """The newest file that this process wrote."""
        atexit.register(self.close)  # a thread inside gloo at interpreter exit would abort the process

    @property
    def newest(self) -> Snapshot | None:
        """The snapshot that the next `open` sends."""
        return self._newest

    def publish(self, snapshot: Snapshot) -> None:
        """Makes `snapshot` the snapshot to send; transfers under way go on with their own snapshots. Returns when its buckets
        are digested, so that nobody who opens a transfer waits for them."""
        if self._deltas is not None:
            self._deltas.publish(snapshot)
        with self._lock:
            self._newest, self._cargo = snapshot, None
            self._published += 1
            forgotten = [name for name, opened in self._opened_at.items() if self._is_forgotten(opened)]
            for rollout_id in forgotten:
                assert self.links is not None
                if self.links.retire(rollout_id):
                    del self._opened_at[rollout_id]
        if self.links is not None:
            self._cargo_of(snapshot)

    def open(
        self, *, rollout_id: str, epoch: str, timeout_s: float, receiver_device: str = "", held: Held | None = None
    ) -> OpenedTransfer:
        """Begins sending the newest snapshot to one receiver; returns when the buckets are digested, which happens once a
        version (`file`: when the file is written).

        A receiver that holds `held` gets a delta where there is one. An epoch keeps the backend with which it began.
        Raises NotReady when nothing is published yet or the epoch has ended or is busy (then open a fresh one),
        Overloaded at MAX_LINKS, Unavailable when the disk refuses the file.
        """
        snapshot = self._newest
        if snapshot is None:
            raise NotReady("the learner has published no weights yet")
        if self.links is None:
            with self._writing:
                path = self._write(snapshot, rollout_id)
            return OpenedTransfer(manifest=snapshot.manifest, backend="file", file_path=str(path))
        backend = backend_between(self._device, receiver_device) if self._backend == "auto" else self._backend
        assert backend != "file"
        cargo = None
        if self._deltas is not None and held is not None:
            cargo = self._deltas.cargo(held, snapshot, wait_s=timeout_s / 2)
        if cargo is None:
            cargo = self._cargo_of(snapshot)
        with self._lock:
            link = self.links.open(cargo, receiver_id=rollout_id, epoch=epoch, backend=backend, timeout_s=timeout_s)
            self._opened_at[rollout_id] = self._published
        return OpenedTransfer(
            manifest=snapshot.manifest,
            payload=cargo.payload,
            backend=link.backend,
            store_host=link.rendezvous.host,
            store_port=link.rendezvous.port,
            secret=link.rendezvous.secret,
            new_epoch=link.new_epoch,
        )

    def close(self) -> None:
        """Retires every epoch; waits for the senders' threads, for each thread at most until its running operation ends."""
        atexit.unregister(self.close)
        if self._deltas is not None:
            self._deltas.close()
        if self.links is not None:
            self.links.close()

    def _cargo_of(self, snapshot: Snapshot) -> Cargo:
        """The dense cargo of a snapshot, made once a version."""
        with self._packing:
            kept = self._cargo
            if kept is not None and kept[0] is snapshot:
                return kept[1]
            threads = 1 if self._device == CPU else blake3.AUTO
            made = Cargo.whole(payload.dense(snapshot.manifest, snapshot.buffer, threads=threads), snapshot.buffer)
            with self._lock:
                if snapshot is self._newest:  # the memory of any other one is wanted back
                    self._cargo = (snapshot, made)
            return made

    def _write(self, snapshot: Snapshot, rollout_id: str) -> Path:
        """Writes the snapshot's file. Removes other files, a former learner's too, unless a rollout may still read them."""
        assert self._directory is not None
        self._told.pop(rollout_id, None)  # the rollout asks again, so it no longer reads its former file
        self._told = {name: told for name, told in self._told.items() if not self._is_forgotten(told[0])}
        try:
            newest = snapshot_files.path_of(self._directory, snapshot.manifest)
            snapshot_files.prune(self._directory, keep={newest, *(path for _, path in self._told.values())})
            path = snapshot_files.write_snapshot(self._directory, snapshot, anew=newest != self._written)
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
