"""A learner without a model: takes batches, commits them as trained, and publishes versions by name."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from sluice.run_dir.stored_group import StoredGroups
from sluice.run_dir.token_figures import example_of, pack_figures
from sluice.testing.fakes.service import Connection, FakeService, digest, version
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import learner_pb2, learner_pb2_grpc

BY_NAME = "-"
"""The file path of weights that consist of a version's name alone."""

CALL_SLACK_S = 60.0
COMMIT_TIMEOUT_S = 60.0


class FakeLearner(FakeService, learner_pb2_grpc.LearnerServiceServicer):
    """Records the steps that it trained, as the real learner does."""

    service_name = "sluice.v1.LearnerService"
    role = pb.SERVICE_ROLE_LEARNER

    def __init__(self, *, service_id: str = "learner", **standing: Any) -> None:
        super().__init__(service_id=service_id, **standing)
        self.version = 0
        """The version published last."""
        self.fence = 0
        self.trained: list[pb.TrainedStep] = []
        self.metrics = {"loss/entropy_nats": 1.0}
        """The metrics that it reports with every commit."""
        self.as_stored = True
        """Whether it asks for stored groups, as the real learner does, or for Group messages, as a script may."""
        self._stored = StoredGroups()
        self.transfers = 0
        self.receiver_devices: set[str] = set()
        """The devices for which transfers were opened."""
        self.may_open = asyncio.Event()
        """While cleared, OpenTransfer hangs."""
        self.may_open.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        learner_pb2_grpc.add_LearnerServiceServicer_to_server(self, server)

    def holds(self) -> common.PolicyVersion:
        """The version published last."""
        return version(self.version, self.lineage)

    def stated(self) -> list[pb.TrainedStep]:
        """The trained steps up to the published version."""
        return [step for step in self.trained if step.step < self.version]

    def registered(self, answer: pb.RegisterResponse) -> None:
        """Keeps the fence of a registration."""
        self.fence = answer.fence

    @property
    def ids(self) -> list[str]:
        """The ids of the groups that it trained."""
        return [group_id for step in self.trained for group_id in step.group_ids]

    async def batch(self, to: Connection, step: int, *, wait_s: float = 20.0) -> list[pb.GetBatchResponse]:
        """The parts of batch `step`: header and groups, or the reason why there is no batch."""
        request = pb.GetBatchRequest(step=step, wait_s=wait_s, fence=self.fence, as_stored=self.as_stored)
        return [self._readable(part) async for part in to.stub.GetBatch(request, timeout=wait_s + CALL_SLACK_S)]

    def _readable(self, part: pb.GetBatchResponse) -> pb.GetBatchResponse:
        if part.WhichOneof("part") != "stored_group":
            return part
        return pb.GetBatchResponse(group=self._stored.unpack(part.stored_group))

    def publish(self, step: int, batch: list[pb.GetBatchResponse]) -> pb.TrainedStep:
        """Step `step` is trained, and not committed yet."""
        assert batch[0].HasField("header"), f"no batch {step}: {batch[0].not_ready.reason}"
        self.version = step + 1
        trained = pb.TrainedStep(
            step=step,
            batch_digest=batch[0].header.digest,
            group_ids=[part.group.group_id for part in batch[1:]],
            version=self.holds(),
            weights_digest=digest(step + 1),
        )
        self.trained = [*self.trained[:step], trained]
        return trained

    async def commit(self, to: Connection, step: int, batch: list[pb.GetBatchResponse]) -> pb.CommitStepResponse:
        """Step `step` is trained on this batch and committed."""
        trained = self.publish(step, batch)
        request = pb.CommitStepRequest(
            step=step,
            version=trained.version,
            weights_digest=trained.weights_digest,
            batch_digest=trained.batch_digest,
            metrics=self.metrics,
            fence=self.fence,
            example=example([part.group for part in batch[1:]], step=step) if batch[1:] else None,
        )
        answer = await to.stub.CommitStep(request, timeout=COMMIT_TIMEOUT_S)
        trained.committed = True
        return answer

    async def train(self, to: Connection, steps: range) -> None:
        """Gets, "trains" and commits every step."""
        for step in steps:
            await self.commit(to, step, await self.batch(to, step))

    async def OpenTransfer(
        self, request: learner_pb2.OpenTransferRequest, context: Any
    ) -> learner_pb2.OpenTransferResponse:
        self.transfers += 1
        self.receiver_devices.add(request.receiver_device)
        await self.may_open.wait()
        manifest = common.WeightManifest(version=self.holds(), digest=digest(self.version))
        return learner_pb2.OpenTransferResponse(manifest=manifest, backend="file", file_path=BY_NAME, new_epoch=True)

    async def SaveCheckpoint(
        self, request: learner_pb2.LearnerServiceSaveCheckpointRequest, context: Any
    ) -> learner_pb2.LearnerServiceSaveCheckpointResponse:
        return learner_pb2.LearnerServiceSaveCheckpointResponse(path=f"step-{self.version}", version=self.holds())


def example(groups: Sequence[common.Group], *, step: int) -> pb.TokenFigures:
    """Of the group that a run keeps of step `step`: every token as likely as in the rollout, each of 0.5 nats."""
    group = groups[example_of(step, len(groups))]
    tokens = sum(len(sample.token_ids) // 4 for sample in group.samples)
    return pb.TokenFigures(
        group_id=group.group_id,
        log_ratios=pack_figures(np.zeros(tokens)),
        entropies=pack_figures(np.full(tokens, 0.5)),
    )
