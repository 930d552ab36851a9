"""A pair over gloo: from host memory to host memory, with no copy between.

Only its timeout or the peer's death ends a gloo operation; abort and shutdown do not end a wait. After a failed operation the
later ones of the pair fail at once, because gloo closes the connection. The pair's own thread of gloo runs operations in their
order, each with the whole limit.
"""

import ipaddress
import socket
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroupGloo

from sluice.errors import TransferError
from sluice.weights.memory import as_tensor
from sluice.weights.rendezvous import ROOT_RANK, Rendezvous
from sluice.weights.staged_group import broadcast_options


@dataclass(slots=True)
class GlooGroup:
    """TransferGroup of backends.py, for one thread at a time."""

    group: Any
    """ProcessGroupGloo, whose stub lacks its operations."""
    epoch: str
    limit_s: float

    @classmethod
    def form(cls, store: Store, rendezvous: Rendezvous) -> "GlooGroup":
        """Raises RuntimeError unless the peer comes within the limit."""
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=rendezvous.timeout_s)
        options._threads = 1
        options._devices = [ProcessGroupGloo.create_device(hostname=_local_address(rendezvous))]
        group = ProcessGroupGloo(store, rendezvous.rank, rendezvous.world_size, options)
        return cls(group, rendezvous.epoch, rendezvous.timeout_s)

    def start(self, data: np.ndarray, *, root: int = ROOT_RANK) -> "_GlooFlight":
        """TransferGroup.start."""
        try:
            work = self.group.broadcast([as_tensor(data)], broadcast_options(self.limit_s, root))
        except RuntimeError as error:  # gloo raises nothing narrower
            raise TransferError(f"epoch {self.epoch}: {error}") from error
        return _GlooFlight(work, self.epoch)

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        """TransferGroup.broadcast."""
        self.start(data, root=root).wait()

    def rest(self) -> None:
        """TransferGroup.rest: gloo keeps nothing."""

    def close(self) -> None:
        """TransferGroup.close. Nothing may be under way: gloo's end waits for it with the interpreter's lock in hand."""
        del self.group


@dataclass(frozen=True, slots=True)
class _GlooFlight:
    """Flight of flights.py."""

    work: Any = field(repr=False)
    epoch: str

    def wait(self) -> None:
        try:
            self.work.wait()
        except RuntimeError as error:
            raise TransferError(f"epoch {self.epoch}: {error}") from error


def _local_address(rendezvous: Rendezvous) -> str:
    """An address of this machine that the other end can reach: the store's address, or the address that routes to it."""
    found = socket.getaddrinfo(rendezvous.host, rendezvous.port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    if rendezvous.rank == ROOT_RANK:
        return str(ipaddress.ip_address(address[0]))
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing: the kernel only picks the interface
        return probe.getsockname()[0]
