"""A learner without a model: takes batches, lets the training time pass, commits. Weights are names of versions."""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from benchmarks.simulated.names import digest, registration, version
from sluice.rpc.registration import Registration
from sluice.rpc.server import RpcServer, make_server
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import learner_pb2, learner_pb2_grpc

POLL_S = 20.0


class SimulatedLearner(learner_pb2_grpc.LearnerServiceServicer):
    """Registers with whatever answers as the coordinator."""

    def __init__(self, *, coordinator: str, model: Path) -> None:
        self._coordinator, self._model = coordinator, model
        self._fence, self._stored = 0, StoredGroups()
        self.number = 0
        """The version published last."""

    async def start(self, *, number: int = 0) -> None:
        """Serves and registers."""
        self.number = number
        self._server: RpcServer = make_server(
            lambda grpc_server: learner_pb2_grpc.add_LearnerServiceServicer_to_server(self, grpc_server), services=[]
        )
        port = await self._server.start(bind="127.0.0.1", port=0)
        request = registration(
            pb.SERVICE_ROLE_LEARNER, service_id="learner", address=f"127.0.0.1:{port}", model=self._model, capacity=1
        )
        beat = pb.HeartbeatRequest(service_id="learner", incarnation=request.incarnation)
        self._standing = Registration(coordinator=self._coordinator, describe=lambda: request, beat=lambda: beat)
        self._fence = (await self._standing.register()).fence
        self._beating = asyncio.create_task(self._standing.keep_alive())

    async def close(self) -> None:
        """Leaves without a word."""
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        await self._standing.close()
        await self._server.stop(grace_s=0.0)

    async def batch(self, step: int) -> tuple[str, list[common.Group]]:
        """Digest and groups of batch `step`, however long that takes. Raises RuntimeError when the run ends instead."""
        while True:
            request = pb.GetBatchRequest(step=step, wait_s=POLL_S, fence=self._fence, as_stored=True)
            groups: list[common.Group] = []
            name = ""
            async for part in self._standing.stub.GetBatch(request, timeout=POLL_S + 60):
                match part.WhichOneof("part"):
                    case "header":
                        name = part.header.digest
                    case "stored_group":
                        groups.append(self._stored.unpack(part.stored_group))
                    case "group":
                        groups.append(part.group)
                    case _ if part.not_ready.ended:
                        raise RuntimeError(f"no batch {step}: {part.not_ready.reason}")
            if groups:
                return name, groups

    async def commit(self, step: int, batch_digest: str) -> None:
        """Step `step` is trained; the coordinator pushes version step + 1 to every rollout."""
        self.number = step + 1
        request = pb.CommitStepRequest(
            step=step,
            version=version(step + 1),
            weights_digest=digest(step + 1),
            batch_digest=batch_digest,
            fence=self._fence,
        )
        await self._standing.stub.CommitStep(request, timeout=60)

    async def status(self) -> pb.GetStatusResponse:
        """The coordinator's."""
        return await self._standing.stub.GetStatus(pb.GetStatusRequest(), timeout=30)

    async def OpenTransfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        manifest = common.WeightManifest(version=version(self.number), digest=digest(self.number))
        return learner_pb2.OpenTransferResponse(manifest=manifest, backend="file", file_path="-", new_epoch=True)
