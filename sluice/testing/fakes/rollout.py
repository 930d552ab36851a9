"""A rollout without a model that keeps the contract of rollout servers (sluice/testing/conformance).

Weights are taken by name (see learner.py) or from a file that a rollout may read; there are no transfer groups. A request
waits for the engine's time alone, and ends with its length, with Abort or when the caller leaves.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from sluice.errors import InvalidRequest, NotReady, TransferError
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.testing.fakes.learner import BY_NAME
from sluice.testing.fakes.service import FakeService
from sluice.testing.fakes.timed_engine import TimedEngine
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import rollout_pb2, rollout_pb2_grpc

END_TOKEN = 2


@dataclass(kw_only=True, slots=True)
class Running:
    """A request under way."""

    samples: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)


class FakeRollout(FakeService, rollout_pb2_grpc.RolloutServiceServicer):
    """By default every sample has 3 tokens, and the first sample of each group says "right"."""

    service_name = "sluice.v1.RolloutService"
    role = pb.SERVICE_ROLE_ROLLOUT
    device = "cpu"

    def __init__(self, *, service_id: str = "rollout-0", engine: TimedEngine | None = None, **standing: Any) -> None:
        super().__init__(service_id=service_id, **standing)
        self.engine = engine or TimedEngine()
        self.logprobs = [-0.1, -0.2, -0.3]
        """Log-probabilities of the tokens of a sample, in turn."""
        self.generated: list[str] = []
        """The ids of all requests so far."""
        self.applied: list[int] = []
        self.die_on: str | None = None
        """The rollout dies at a request whose id begins with this text."""
        self.generated_tokens = 0
        self.held: common.WeightManifest | None = None
        self.receiving: tuple[common.WeightManifest, str] | None = None
        self.running: dict[str, Running] = {}
        self.draining = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self, server)

    def write(
        self, request: rollout_pb2.GenerateRequest, spec: rollout_pb2.SampleSpec, tokens: int
    ) -> tuple[bytes, bytes, str]:
        """A completion of `tokens` tokens: int32 ids, float32 log-probabilities, text."""
        ids = [5 + place % 2 for place in range(tokens - 1)] + [END_TOKEN]
        return pack_ids(ids), pack_floats(np.resize(self.logprobs, tokens)), "right" if spec.index == 0 else "wrong"

    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        self.generated.append(request.request_id)
        if self.die_on is not None and request.request_id.startswith(self.die_on):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        self.check_standing(request)
        self.check_request(request)
        running = self.running[request.request_id] = Running(samples=len(request.samples))
        try:
            async with contextlib.aclosing(self._samples(request, running)) as samples:
                async for sample in samples:
                    running.samples -= 1
                    yield rollout_pb2.GenerateResponse(sample=sample)
        finally:
            self.end_of(request.request_id)

    async def _samples(
        self, request: rollout_pb2.GenerateRequest, running: Running
    ) -> AsyncGenerator[common.Sample, None]:
        """All samples, in the order in which they end."""
        if self.engine.token_s == 0.0:
            for spec in request.samples:
                yield await self.sample(request, spec, running)
            return
        tasks = [asyncio.create_task(self.sample(request, spec, running)) for spec in request.samples]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            for task in tasks:
                task.cancel()

    def end_of(self, request_id: str) -> None:
        """Called when nothing of the request runs any more."""
        del self.running[request_id]

    def check_standing(self, request: rollout_pb2.GenerateRequest) -> None:
        """Raises NotReady for a request that this rollout cannot serve now."""
        if self.held is None:
            raise NotReady("no weights yet")
        if self.draining:
            raise NotReady("draining")
        if request.HasField("required_version") and request.required_version != self.held.version:
            raise NotReady("another version is held")

    def check_request(self, request: rollout_pb2.GenerateRequest) -> None:
        """Raises InvalidRequest for a request that no rollout can serve."""
        sampling, ids = request.sampling, unpack_ids(request.prompt_token_ids)
        indices = {spec.index for spec in request.samples}
        holds = {
            "request_id: must not be empty": bool(request.request_id),
            "prompt_token_ids: must be ids": bool(len(ids)) and bool((ids >= 0).all()),
            "samples: must have an index each": 0 < len(indices) == len(request.samples),
            "samples: seeds must be >= 0": all(spec.seed >= 0 for spec in request.samples),
            "sampling: must be neutral": (sampling.top_p == 1 or request.evaluation) and sampling.top_k == -1,
            "top_p: must be > 0 and <= 1": 0 < sampling.top_p <= 1,
            "temperature: must be >= 0": sampling.temperature >= 0,
            "max_tokens: must fit": 0 < sampling.max_tokens <= self.max_model_len - len(ids),
        }
        for rule, held in holds.items():
            if not held:
                raise InvalidRequest(rule)

    async def sample(
        self, request: rollout_pb2.GenerateRequest, spec: rollout_pb2.SampleSpec, running: Running
    ) -> common.Sample:
        """One sample, after its time in the engine."""
        most = request.sampling.max_tokens
        made = await self.engine.generate(spec.seed, most=most, stop=running.stop)
        self.generated_tokens += made.tokens
        token_ids, logprobs, text = self.write(request, spec, made.tokens)
        ended = common.FINISH_REASON_LENGTH if made.tokens == most else common.FINISH_REASON_STOP
        return common.Sample(
            index=spec.index,
            seed=spec.seed,
            token_ids=token_ids,
            logprobs=logprobs,
            spans=made.spans,
            finish_reason=common.FINISH_REASON_ABORT if made.cut_short else ended,
            text=text,
            rollout_id=self.service_id,
        )

    async def Abort(self, request: rollout_pb2.AbortRequest, context: Any) -> rollout_pb2.AbortResponse:
        known = [self.running[name] for name in request.request_ids if name in self.running]
        for running in known:
            running.stop.set()
        return rollout_pb2.AbortResponse(aborted=len(known))

    async def GetInfo(self, request: Any, context: Any) -> rollout_pb2.RolloutServiceGetInfoResponse:
        return rollout_pb2.RolloutServiceGetInfoResponse(
            rollout_id=self.service_id,
            engine="fake",
            version=None if self.held is None else self.held.version,
            digest="" if self.held is None else self.held.digest,
            running_samples=sum(running.samples for running in self.running.values()),
            capacity_samples=self.capacity,
            generated_tokens=self.generated_tokens,
            max_model_len=self.max_model_len,
        )

    async def Drain(self, request: Any, context: Any) -> rollout_pb2.RolloutServiceDrainResponse:
        self.draining = True
        return rollout_pb2.RolloutServiceDrainResponse()

    async def JoinEpoch(self, request: rollout_pb2.JoinEpochRequest, context: Any) -> rollout_pb2.JoinEpochResponse:
        if request.backend not in ("gloo", "nccl"):
            raise InvalidRequest("backend: must be gloo or nccl")
        raise TransferError("a fake rollout joins nobody: weights come from a file, or by name")

    async def ReceiveWeights(
        self, request: rollout_pb2.ReceiveWeightsRequest, context: Any
    ) -> rollout_pb2.ReceiveWeightsResponse:
        if not request.manifest.digest:
            raise InvalidRequest("manifest: must not be empty")
        if not request.file_path:
            raise NotReady("epoch: not joined")
        self.receiving = (request.manifest, request.file_path)
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(
        self, request: rollout_pb2.ApplyWeightsRequest, context: Any
    ) -> rollout_pb2.ApplyWeightsResponse:
        if self.receiving is None:
            raise NotReady("no receive was begun")
        (manifest, path), self.receiving = self.receiving, None
        found = manifest.digest if path == BY_NAME else await asyncio.to_thread(_digest_of, Path(path))
        if found != manifest.digest:
            raise TransferError(f"{path}: another digest")
        self.held = manifest
        self.engine.apply(manifest.version)
        self.applied.append(manifest.version.number)
        return rollout_pb2.ApplyWeightsResponse(version=manifest.version, digest=found)


def _digest_of(path: Path) -> str:
    from sluice.weights.snapshot_files import (
        read_snapshot,  # safetensors is no dependency of a fake that is told names alone
    )

    return read_snapshot(path).manifest.digest
