"""Passes the payload that arrives here, or arrived last, on to other rollouts, a bucket as soon as it is verified.

The rollouts join at a store of this process, made with the first of them. No failure of such a link reaches this rollout's
own weights (sluice/weights/links.py).
"""

import threading

from sluice.accelerator import backend_between
from sluice.errors import NotReady
from sluice.weights.carrier import Backend
from sluice.weights.links import Links, OpenedLink
from sluice.weights.receiver import WeightReceiver

KEPT_PAYLOADS = 4
"""A receiver that asked for none of so many payloads has another source: its epoch ends. Chosen as for the learner's."""


class WeightRelay:
    """Thread-safe. Receivers reach this machine at `host`; the store listens on `bind`."""

    def __init__(
        self,
        receiver: WeightReceiver,
        *,
        backend: Backend,
        host: str,
        bind: str,
        device: str,
    ) -> None:
        """`backend` is a settled one (sluice/weights/carrier.py), `device` what takes this rollout's weights
        (sluice/accelerator.py)."""
        self._receiver = receiver
        self._backend: Backend = backend
        self._host, self._bind, self._device = host, bind, device
        self._lock = threading.Lock()
        self._links = Links(host=host, bind=bind, meets=False) if backend == "grpc" else None
        self._closed = False
        self._newest = ""
        """The id of the payload that was asked for last."""
        self._payloads = 0
        """How many were asked for."""
        self._opened_at: dict[str, int] = {}
        """By receiver: the number of the payload that it asked for last."""

    def open(
        self, *, receiver_id: str, epoch: str, payload_id: str, timeout_s: float, receiver_device: str = ""
    ) -> OpenedLink:
        """Begins sending to one receiver; returns at once.

        Raises NotReady when this rollout has another payload or none, or when the epoch has ended or is busy (then open a
        fresh one), and Overloaded when too many are open.
        """
        if self._backend == "file":
            raise NotReady("with weights.backend=file every rollout reads the learner's file; nobody relays")
        backend = backend_between(self._device, receiver_device) if self._backend == "auto" else self._backend
        with self._receiver.lent(payload_id) as cargo, self._lock:
            if self._closed:
                raise NotReady("this rollout is leaving")
            links = self._links = self._links or Links(host=self._host, bind=self._bind)
            opened = links.open(cargo, receiver_id=receiver_id, epoch=epoch, backend=backend, timeout_s=timeout_s)
            self._note(links, receiver_id, payload_id)
        return opened

    @property
    def links(self) -> Links | None:
        """The links whose offers the server of this process streams; None where nothing goes over gRPC."""
        return self._links if self._backend == "grpc" else None

    def close(self) -> None:
        """Ends every link; waits for its threads, for each at most until its running operation ends."""
        with self._lock:
            self._closed, links = True, self._links
        if links is not None:
            links.close()

    def _note(self, links: Links, receiver_id: str, payload_id: str) -> None:
        """Notes who asked; ends the links of those who have gone elsewhere."""
        if payload_id != self._newest:
            self._newest = payload_id
            self._payloads += 1
            for name in [name for name, number in self._opened_at.items() if self._payloads - number >= KEPT_PAYLOADS]:
                if links.retire(name):
                    del self._opened_at[name]
        self._opened_at[receiver_id] = self._payloads
