"""Transfer groups: the collectives that carry packed bytes, one two-rank world per receiver and membership epoch.

Raw process groups on the learner's TCPStore, never `init_process_group` and never the default group, so a receiver that
joins or dies disturbs no other receiver. The learner is rank 0 and only sends. Waits: at most `timeout_s` for a join and
for every broadcast, then TransferError. Only its timeout or the peer's death ends a gloo operation (abort and shutdown do
not end a wait), so buckets are small. A group that has failed is closed and never used again.

The tests run gloo. The NCCL path has not been run: its tests need two GPUs.
"""

import contextlib
import ctypes
import ipaddress
import math
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import BroadcastOptions, ProcessGroupGloo

from sluice.errors import TransferError
from sluice.weights.authentication import prove
from sluice.weights.sealed_store import SealedStore

Collective = Literal["gloo", "nccl"]
Carrier = Literal["gloo", "nccl", "grpc"]
"""What brings buckets from a source to a receiver."""

ROOT_RANK = 0
"""The learner's rank in every group."""


class TransferGroup(Protocol):
    """A joined group, for use by one thread at a time."""

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        """Sends (as rank `root`) or fills (as any other) contiguous uint8[n] host memory.

        Raises TransferError at the deadline.
        """
        ...

    def close(self) -> None:
        """Frees the group's sockets or communicator; only after its last broadcast has returned."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """The address, the names and the rank for joining one epoch's group."""

    host: str
    port: int
    secret: str
    """Known to the two ends alone, by which they know each other (authentication.py)."""
    epoch: str
    """Unique to one membership; never used twice."""
    rank: int
    world_size: int
    timeout_s: float
    """Limit of the join and of every later broadcast."""
    source: Literal["learner", "rollout"] = "learner"
    """The role of rank 0, which the receiver insists on over gRPC."""


class TransferStore:
    """The learner's TCPStore, in which the two ends of every epoch exchange addresses."""

    def __init__(self, *, bind: str, port: int = 0) -> None:
        """Listens on `bind`:`port` (0: any free port). Raises OSError when the address cannot be bound."""
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        listener = socket.create_server((bind, port), family=family, backlog=128)
        self.port: int = listener.getsockname()[1]
        # The store takes the listening socket over, so nobody can grab the port in between.
        self._store = TCPStore(
            bind, self.port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def join(rendezvous: Rendezvous, *, backend: Collective) -> TransferGroup:
    """Joins an epoch's group; returns once the peer is there and has proved that it is the peer.

    Raises TransferError at the deadline, or when somebody else is there.
    """
    timeout = timedelta(seconds=rendezvous.timeout_s)
    try:
        # A store client of this thread's own: threads that share a client wait for each other's blocking reads.
        plain = TCPStore(
            rendezvous.host, rendezvous.port, None, is_master=False, timeout=timeout, wait_for_workers=False
        )
        store = SealedStore(plain, secret=rendezvous.secret, epoch=rendezvous.epoch)
        try:
            return _proved(store, rendezvous, backend)
        finally:
            if rendezvous.rank == ROOT_RANK:
                store.forget()
    except RuntimeError as error:  # torch's store, network and backend errors have no narrower common base
        raise TransferError(
            f"epoch {rendezvous.epoch}: rank {rendezvous.rank} could not join over {backend} at "
            f"{rendezvous.host}:{rendezvous.port} within {rendezvous.timeout_s:g} s: {error}"
        ) from error


def _proved(store: Store, rendezvous: Rendezvous, backend: Collective) -> TransferGroup:
    group = _GlooGroup.form(store, rendezvous) if backend == "gloo" else _NcclGroup.form(store, rendezvous)
    try:
        prove(group, secret=rendezvous.secret, epoch=rendezvous.epoch, rank=rendezvous.rank)
    except TransferError:
        group.close()
        raise
    return group


def as_tensor(data: np.ndarray) -> torch.Tensor:
    """uint8[n] host memory as a tensor over the same bytes, which must outlive the tensor. A sealed snapshot is read-only
    to numpy; torch knows no read-only tensors, so nobody may write to this tensor."""
    assert data.dtype == np.uint8
    assert data.flags.c_contiguous
    if data.flags.writeable:
        return torch.from_numpy(data)
    alias = (ctypes.c_uint8 * data.nbytes).from_address(data.ctypes.data)
    return torch.frombuffer(alias, dtype=torch.uint8)


@dataclass(slots=True)
class _GlooGroup:
    group: Any
    """ProcessGroupGloo, whose stub lacks its operations."""
    epoch: str
    timeout: timedelta

    @classmethod
    def form(cls, store: Store, rendezvous: Rendezvous) -> "_GlooGroup":
        timeout = timedelta(seconds=rendezvous.timeout_s)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timeout
        options._threads = 1
        options._devices = [ProcessGroupGloo.create_device(hostname=_local_address(rendezvous))]
        group = ProcessGroupGloo(store, rendezvous.rank, rendezvous.world_size, options)
        return cls(group, rendezvous.epoch, timeout)

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        try:
            self.group.broadcast([as_tensor(data)], _broadcast_options(self.timeout, root)).wait()
        except RuntimeError as error:  # gloo raises nothing narrower
            raise TransferError(f"epoch {self.epoch}: {error}") from error

    def close(self) -> None:
        del self.group


@dataclass(slots=True)
class _NcclGroup:
    """Stages every bucket in device memory, one bucket at a time."""

    group: Any
    """ProcessGroupNCCL, whose stub lacks its operations."""
    epoch: str
    rank: int
    timeout: timedelta
    device: torch.device
    staging: torch.Tensor | None = field(default=None, repr=False)

    @classmethod
    def form(cls, store: Store, rendezvous: Rendezvous) -> "_NcclGroup":
        from torch.distributed import ProcessGroupNCCL  # absent from builds without CUDA

        timeout = timedelta(seconds=rendezvous.timeout_s)
        options = ProcessGroupNCCL.Options()
        options._timeout = timeout
        # Only a non-blocking communicator has a limit for its making; torch reads this variable once a process.
        options.config.blocking = 0
        os.environ.setdefault("TORCH_NCCL_NONBLOCKING_TIMEOUT", str(math.ceil(rendezvous.timeout_s)))
        with _no_nccl_watchdog():
            group = ProcessGroupNCCL(store, rendezvous.rank, rendezvous.world_size, options)
        made = cls(
            group=group,
            epoch=rendezvous.epoch,
            rank=rendezvous.rank,
            timeout=timeout,
            device=torch.device("cuda", torch.cuda.current_device()),
        )
        made._broadcast(torch.zeros(1, device=made.device), ROOT_RANK)  # NCCL connects with the first operation
        return made

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        host = as_tensor(data)
        if self.staging is None or self.staging.numel() < host.numel():
            self.staging = torch.empty(host.numel(), dtype=torch.uint8, device=self.device)
        bucket = self.staging[: host.numel()]
        try:
            if self.rank == root:
                bucket.copy_(host)
            self._broadcast(bucket, root)
            if self.rank != root:
                host.copy_(bucket)
        except RuntimeError as error:  # torch's distributed and accelerator errors share no narrower base
            raise TransferError(f"epoch {self.epoch}: {error}") from error

    def _broadcast(self, tensor: torch.Tensor, root: int) -> None:
        """Blocks this thread, not only the stream, until the operation is done. After a failure aborts the communicator."""
        try:
            self.group.broadcast([tensor], _broadcast_options(self.timeout, root)).wait(self.timeout)
        except RuntimeError:
            self.group.abort()
            raise

    def close(self) -> None:
        self.group.abort()
        self.staging = None


_environment = threading.Lock()
"""Held while the environment is changed, because several threads make groups."""


@contextlib.contextmanager
def _no_nccl_watchdog() -> Iterator[None]:
    """A group made within this context does not end the process when an operation times out: Sluice's own deadline counts.
    Other groups, such as FSDP's, keep torch's default."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _broadcast_options(timeout: timedelta, root: int) -> BroadcastOptions:
    options = BroadcastOptions()
    options.rootRank = root
    options.timeout = timeout
    return options


def _local_address(rendezvous: Rendezvous) -> str:
    """An address of this machine that the other end can reach: the store's address, or the address that routes to it."""
    found = socket.getaddrinfo(rendezvous.host, rendezvous.port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    if rendezvous.rank == ROOT_RANK:
        return str(ipaddress.ip_address(address[0]))
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: the kernel only picks the interface
        return probe.getsockname()[0]
