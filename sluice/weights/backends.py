"""Transfer groups: the collectives that carry packed bytes, one two-rank world per receiver and membership epoch.

Raw process groups on the sender's TCPStore, never `init_process_group` and never the default group, so a receiver that joins or
dies disturbs no other receiver. Waits: for the meeting and for every operation at most `timeout_s`, for a communicator of NCCL
`JOIN_LIMIT_S`, then TransferError. A group that has failed is closed and never used again.

gloo_group.py and nccl_group.py have the backends; flights.py has two buckets of a transfer under way at a time. The tests run
gloo.
"""

import socket
from datetime import timedelta
from typing import Protocol

import numpy as np
from torch._C._distributed_c10d import Store, TCPStore

from sluice.errors import TransferError
from sluice.weights.authentication import prove
from sluice.weights.flights import Flight
from sluice.weights.gloo_group import GlooGroup
from sluice.weights.memory import as_tensor
from sluice.weights.rendezvous import ROOT_RANK, Carrier, Collective, Rendezvous, join_limit_s
from sluice.weights.sealed_store import SealedStore

__all__ = [
    "ROOT_RANK",
    "Carrier",
    "Collective",
    "Rendezvous",
    "TransferGroup",
    "TransferStore",
    "as_tensor",
    "join",
    "join_limit_s",
]


class TransferGroup(Protocol):
    """A joined group, for use by one thread at a time."""

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        """Sends (as rank `root`) or fills (as any other) contiguous uint8[n] host memory.

        Raises TransferError at the deadline.
        """
        ...

    def start(self, data: np.ndarray, *, root: int = ROOT_RANK) -> Flight:
        """Begins such a broadcast of memory that must stay until its flight has ended. Raises TransferError."""
        ...

    def rest(self) -> None:
        """Gives back what only a transfer needs, between two versions; nothing may be under way."""
        ...

    def close(self) -> None:
        """Frees the group's sockets or communicator; only after its last broadcast has returned."""
        ...


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
            f"{rendezvous.host}:{rendezvous.port} within {join_limit_s(backend, rendezvous.timeout_s):g} s: {error}"
        ) from error


def _proved(store: Store, rendezvous: Rendezvous, backend: Collective) -> TransferGroup:
    group = _formed(store, rendezvous, backend)
    try:
        prove(group, secret=rendezvous.secret, epoch=rendezvous.epoch, rank=rendezvous.rank)
    except TransferError:
        group.close()
        raise
    return group


def _formed(store: Store, rendezvous: Rendezvous, backend: Collective) -> TransferGroup:
    if backend == "gloo":
        return GlooGroup.form(store, rendezvous)
    from sluice.weights import nccl_group  # its own module of torch is absent from builds without CUDA

    return nccl_group.form(store, rendezvous)
