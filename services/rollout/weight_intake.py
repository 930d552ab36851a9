"""One version's way into the engine: join, receive in the background, verify, apply between two steps.

Refuses before a byte is sent a version that could not be applied: another model's tensors, or a number that goes back. A
failure at any point before the switch leaves the old version serving.
"""

import asyncio
from dataclasses import dataclass

import structlog

from services.rollout.adapter_merging import AdapterMerger
from services.rollout.engine_loop import EngineLoop, InFlight
from services.rollout.model_files import ModelFacts, check_tensors
from services.rollout.weight_relay import WeightRelay
from sluice.errors import InvalidRequest, NotReady
from sluice.policy_version import PolicyVersion
from sluice.weights.backends import Carrier, Rendezvous
from sluice.weights.cargo import Cargo
from sluice.weights.links import OpenedLink
from sluice.weights.manifest import Manifest
from sluice.weights.payload import Payload
from sluice.weights.receiver import Received, WeightReceiver

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """The rollout's acknowledgement of a version."""

    version: PolicyVersion
    digest: str
    """The digest that this process computed over the received bytes."""
    receive_ms: float
    stall_ms: float
    """How long no token was generated."""


class WeightIntake:
    """The rollout's part of a weight push; one caller, the coordinator, calls the methods one after the other."""

    def __init__(
        self,
        *,
        loop: EngineLoop,
        receiver: WeightReceiver,
        model: ModelFacts,
        inflight: InFlight,
        finish_s: float = 0.0,
        merger: AdapterMerger | None = None,
        relay: WeightRelay | None = None,
    ) -> None:
        """With a `merger` snapshots hold adapters, otherwise all of the model's tensors. `inflight` and `finish_s` decide
        about running samples (EngineLoop.load_weights). Without a `relay` this rollout passes nothing on."""
        self._loop = loop
        self._receiver = receiver
        self._model = model
        self._inflight: InFlight = inflight
        self._finish_s = finish_s
        self._merger = merger
        self._relay = relay
        self._verbs = asyncio.Lock()

    async def join(self, rendezvous: Rendezvous, *, backend: Carrier) -> None:
        """Joins a fresh membership epoch. Raises TransferError when the learner does not join in time."""
        async with self._verbs:
            await asyncio.to_thread(self._receiver.join, rendezvous, backend=backend)

    async def receive(
        self, *, epoch: str, manifest: Manifest, payload: Payload | None = None, file_path: str = ""
    ) -> None:
        """Starts receiving in the background. Raises TransferError, InvalidRequest or NotReady."""
        if self._merger is None:
            check_tensors(manifest, self._model.tensors)
        else:
            self._merger.check(manifest)
        held = self._loop.version
        if held is not None and held.lineage == manifest.version.lineage and manifest.version.number < held.number:
            raise InvalidRequest(
                f"version {manifest.version} is older than {held}, which serves; numbers never go back"
            )
        async with self._verbs:
            self._receiver.begin(epoch=epoch, manifest=manifest, payload=payload, file_path=file_path)

    async def apply(self, version: PolicyVersion, *, timeout_s: float) -> Applied:
        """Waits for the received bytes, verifies and switches. Raises TransferError, Expired, NotReady or EngineFailed."""
        async with self._verbs:
            received = await asyncio.to_thread(self._receiver.result, timeout_s=timeout_s)
            if received.manifest.version != version:
                raise NotReady(f"received version {received.manifest.version}, asked to apply {version}")
            stall_ms = await self._load(received)
            self._receiver.recycle(received)
        log.info(
            "weights_applied",
            version=str(version),
            receive_ms=round(received.receive_ms, 1),
            stall_ms=round(stall_ms, 1),
        )
        return Applied(version=version, digest=received.digest, receive_ms=received.receive_ms, stall_ms=stall_ms)

    async def _load(self, received: Received) -> float:
        """Loads the received version; merges adapters in a thread while the engine goes on. Returns the stall in ms."""
        manifest, buffer = received.manifest, received.buffer
        if self._merger is not None:
            whole = await asyncio.to_thread(self._merger.merge, manifest, buffer)
            manifest, buffer = whole.manifest, whole.buffer
        return await self._loop.load_weights(
            manifest, buffer, inflight=self._inflight, finish_s=self._finish_s, announced=received.manifest
        )

    async def pass_on(
        self, *, receiver_id: str, epoch: str, payload_id: str, timeout_s: float, receiver_device: str
    ) -> OpenedLink:
        """Begins sending what arrives here, or arrived last, to another rollout. Raises NotReady or Overloaded."""
        if self._relay is None:
            raise NotReady("this rollout passes no weights on")
        return await asyncio.to_thread(
            self._relay.open,
            receiver_id=receiver_id,
            epoch=epoch,
            payload_id=payload_id,
            timeout_s=timeout_s,
            receiver_device=receiver_device,
        )

    @property
    def cargo(self) -> Cargo | None:
        """The payload that arrives, or arrived last; None before the first payload."""
        return self._receiver.cargo

    def close(self) -> None:
        """Leaves the epoch, and ends the epochs of rollouts that receive from here."""
        self._receiver.close()
        if self._relay is not None:
            self._relay.close()
