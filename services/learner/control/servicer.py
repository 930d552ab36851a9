"""LearnerService on rank 0: decodes, asks the publisher state, encodes. Weights never cross this service."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc

from services.learner.checkpoint.export import export_version
from services.learner.control.publisher_state import PublisherState
from sluice.config.schema import Config
from sluice.errors import InvalidRequest
from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.rpc.requests import duration_s, name
from sluice.v1 import learner_pb2 as pb
from sluice.v1 import learner_pb2_grpc
from sluice.weights.deltas import Held
from sluice.weights.wire import manifest_to_proto, payload_to_proto


class LearnerServicer(learner_pb2_grpc.LearnerServiceServicer):
    """`wake` tells the training loop that somebody wants a checkpoint."""

    def __init__(self, publisher: PublisherState, *, config: Config, run_dir: Path, wake: Callable[[], None]) -> None:
        self._publisher = publisher
        self._config = config
        self._run_dir = run_dir
        self._wake = wake
        self._exporting = asyncio.Lock()

    async def GetInfo(
        self, request: pb.LearnerServiceGetInfoRequest, context: grpc.aio.ServicerContext
    ) -> pb.LearnerServiceGetInfoResponse:
        manifest = self._publisher.newest.manifest
        return pb.LearnerServiceGetInfoResponse(
            version=version_to_proto(manifest.version),
            digest=manifest.digest,
            world_size=self._publisher.world_size,
            backend=self._publisher.backend,
        )

    async def OpenTransfer(
        self, request: pb.OpenTransferRequest, context: grpc.aio.ServicerContext
    ) -> pb.OpenTransferResponse:
        rollout_id = name(request.rollout_id, field="open transfer: rollout_id")
        epoch = name(request.epoch, field="open transfer: epoch")
        timeout_s = duration_s(request.timeout_s, field="open transfer: timeout_s")
        device = name(request.receiver_device, field="open transfer: receiver_device", may_be_empty=True)
        opened = await asyncio.to_thread(  # `file` writes the snapshot first
            self._publisher.sender.open,
            rollout_id=rollout_id,
            epoch=epoch,
            timeout_s=timeout_s,
            receiver_device=device,
            held=_held(request),
        )
        return pb.OpenTransferResponse(
            manifest=manifest_to_proto(opened.manifest),
            store_host=opened.store_host,
            store_port=opened.store_port,
            secret=opened.secret,
            backend=opened.backend,
            file_path=opened.file_path,
            new_epoch=opened.new_epoch,
            payload=payload_to_proto(opened.payload) if opened.payload else None,
        )

    async def SaveCheckpoint(
        self, request: pb.LearnerServiceSaveCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.LearnerServiceSaveCheckpointResponse:
        asked = self._publisher.request_checkpoint()
        self._wake()
        saved = await asyncio.wrap_future(asked)
        return pb.LearnerServiceSaveCheckpointResponse(path=str(saved.path), version=version_to_proto(saved.version))

    async def Export(self, request: pb.ExportRequest, context: grpc.aio.ServicerContext) -> pb.ExportResponse:
        target = Path(request.path) if request.path else self._run_dir / "model"
        if not target.is_absolute():
            raise InvalidRequest(f"export: path must be absolute, got {target}")
        snapshot = self._publisher.newest
        async with self._exporting:  # two exports to one folder would collide
            await asyncio.to_thread(export_version, snapshot, config=self._config, target=target)
        return pb.ExportResponse(path=str(target), version=version_to_proto(snapshot.manifest.version))


def _held(request: pb.OpenTransferRequest) -> Held | None:
    """What the receiver holds; None: nothing that is known."""
    digest = name(request.held_digest, field="open transfer: held_digest", may_be_empty=True)
    if not request.HasField("held") or not digest:
        return None
    return Held(version=version_from_proto(request.held), digest=digest)
