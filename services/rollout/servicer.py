"""RolloutService on the wire: decode, call the engine loop or the weight intake, encode. Decides nothing."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import cast, get_args

import grpc
import numpy as np

from services.rollout import wire
from services.rollout.engine import FinishedSample, SampleRequest
from services.rollout.engine_loop import EngineLoop, Progress
from services.rollout.model_files import ModelFacts
from services.rollout.weight_intake import WeightIntake
from sluice.errors import InvalidRequest, NotReady
from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.rpc.requests import duration_s, name
from sluice.rpc.traced import moment, note
from sluice.v1 import rollout_pb2, rollout_pb2_grpc
from sluice.weights.backends import Carrier, Rendezvous
from sluice.weights.wire import manifest_from_proto, payload_from_proto

Decode = Callable[[Sequence[int]], str]
"""Completion token ids -> text without special tokens."""


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """See protos/sluice/v1/rollout.proto."""

    def __init__(
        self,
        *,
        loop: EngineLoop,
        weights: WeightIntake,
        model: ModelFacts,
        decode: Decode,
        rollout_id: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._weights = weights
        self._model = model
        self._decode = decode
        self._rollout_id = rollout_id
        self._requests: dict[str, list[str]] = {}
        """The sample ids of running requests, by request_id."""

    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        wanted = wire.sample_requests(
            request, vocab_size=self._model.vocab_size, max_model_len=self._loop.engine.max_model_len
        )
        if request.HasField("required_version"):
            self._require_version(request)
        engine = self._loop.engine
        note(
            gen_ai__operation__name="text_completion",
            gen_ai__provider__name=engine.name,
            gen_ai__request__choice__count=len(wanted),
            gen_ai__usage__input_tokens=len(request.prompt_token_ids) // np.dtype(np.int32).itemsize,
        )
        if request.request_id in self._requests:
            raise InvalidRequest(f"request_id {request.request_id} is running already; use one an attempt")
        self._requests[request.request_id] = list(wanted)
        try:
            async with contextlib.aclosing(self._loop.generate([sample for _, sample in wanted.values()])) as events:
                async for event in events:
                    yield self._response(event, wanted)
        finally:
            del self._requests[request.request_id]

    async def Abort(
        self, request: rollout_pb2.AbortRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.AbortResponse:
        known = [request_id for request_id in request.request_ids if request_id in self._requests]
        await self._loop.abort([sample for request_id in known for sample in self._requests[request_id]])
        return rollout_pb2.AbortResponse(aborted=len(known))

    async def GetInfo(
        self, request: rollout_pb2.RolloutServiceGetInfoRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.RolloutServiceGetInfoResponse:
        engine, weights, cargo = self._loop.engine, self._loop.weights, self._weights.cargo
        return rollout_pb2.RolloutServiceGetInfoResponse(
            rollout_id=self._rollout_id(),
            engine=engine.name,
            version=None if weights is None else version_to_proto(weights.version),
            digest="" if weights is None else weights.digest,
            running_samples=self._loop.running,
            capacity_samples=engine.capacity,
            generated_tokens=engine.generated_tokens,
            max_model_len=engine.max_model_len,
            payload_id="" if cargo is None else cargo.payload.id,
            verified_buckets=0 if cargo is None else cargo.verified,
            buckets=0 if cargo is None else len(cargo.payload.bucket_digests),
        )

    async def JoinEpoch(
        self, request: rollout_pb2.JoinEpochRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.JoinEpochResponse:
        if request.backend not in get_args(Carrier):
            raise InvalidRequest(f"join: backend must be {' or '.join(get_args(Carrier))}, got {request.backend!r}")
        if request.source_role not in ("", "learner", "rollout"):
            raise InvalidRequest(f"join: source_role must be learner or rollout, got {request.source_role!r}")
        rendezvous = Rendezvous(
            host=request.store_host,
            port=request.store_port,
            secret=request.secret,
            epoch=name(request.epoch, field="join: epoch"),
            rank=request.rank,
            world_size=request.world_size,
            timeout_s=duration_s(request.timeout_s, field="join: timeout_s"),
            source="rollout" if request.source_role == "rollout" else "learner",
        )
        await self._weights.join(rendezvous, backend=cast(Carrier, request.backend))
        return rollout_pb2.JoinEpochResponse()

    async def ReceiveWeights(
        self, request: rollout_pb2.ReceiveWeightsRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.ReceiveWeightsResponse:
        manifest = manifest_from_proto(request.manifest)
        payload = None if request.file_path else payload_from_proto(request.payload, manifest)
        await self._weights.receive(
            epoch=request.epoch, manifest=manifest, payload=payload, file_path=request.file_path
        )
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(
        self, request: rollout_pb2.ApplyWeightsRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.ApplyWeightsResponse:
        timeout_s = duration_s(request.timeout_s, field="apply: timeout_s")
        applied = await self._weights.apply(version_from_proto(request.version), timeout_s=timeout_s)
        return rollout_pb2.ApplyWeightsResponse(
            version=version_to_proto(applied.version),
            digest=applied.digest,
            receive_ms=applied.receive_ms,
            stall_ms=applied.stall_ms,
        )

    async def OpenTransfer(
        self, request: rollout_pb2.RolloutServiceOpenTransferRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.RolloutServiceOpenTransferResponse:
        opened = await self._weights.pass_on(
            receiver_id=name(request.receiver_id, field="open transfer: receiver_id"),
            epoch=name(request.epoch, field="open transfer: epoch"),
            payload_id=name(request.payload_id, field="open transfer: payload_id"),
            timeout_s=duration_s(request.timeout_s, field="open transfer: timeout_s"),
            receiver_device=name(request.receiver_device, field="open transfer: receiver_device", may_be_empty=True),
        )
        return rollout_pb2.RolloutServiceOpenTransferResponse(
            store_host=opened.rendezvous.host,
            store_port=opened.rendezvous.port,
            secret=opened.rendezvous.secret,
            backend=opened.backend,
            new_epoch=opened.new_epoch,
        )

    async def Drain(
        self, request: rollout_pb2.RolloutServiceDrainRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.RolloutServiceDrainResponse:
        timeout_s = duration_s(request.timeout_s, field="drain: timeout_s", may_be_0=True)
        running = {sample: request_id for request_id, samples in self._requests.items() for sample in samples}
        aborted = await self._loop.drain(timeout_s=timeout_s)
        return rollout_pb2.RolloutServiceDrainResponse(aborted=len({running[sample] for sample in aborted}))

    def _require_version(self, request: rollout_pb2.GenerateRequest) -> None:
        required, held = version_from_proto(request.required_version), self._loop.version
        if held != required:
            raise NotReady(f"version {required} is required, this rollout holds {held}")

    def _response(
        self,
        event: FinishedSample | Progress,
        wanted: Mapping[str, tuple[rollout_pb2.SampleSpec, SampleRequest]],
    ) -> rollout_pb2.GenerateResponse:
        if isinstance(event, Progress):
            return rollout_pb2.GenerateResponse(progress=rollout_pb2.GenerateProgress(tokens=event.tokens))
        spec, _ = wanted[event.sample_id]
        moment(
            "sluice.sample",
            sluice__sample=spec.index,
            gen_ai__usage__output_tokens=len(event.token_ids),
            gen_ai__response__finish_reasons=(event.finish_reason.value,),
        )
        text = self._decode(np.asarray(event.token_ids).tolist())
        return rollout_pb2.GenerateResponse(
            sample=wire.sample_to_proto(event, spec=spec, text=text, rollout_id=self._rollout_id())
        )
