"""A rollout server with made-up tokens that keeps the contract, but for the one promise that it is told to break."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from sluice.errors import InvalidRequest, NotReady, TransferError
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.rpc.server import RpcServer, make_server
from sluice.testing.conformance.weight_checks import SERVICE
from sluice.v1 import common_pb2, rollout_pb2, rollout_pb2_grpc
from sluice.weights import files
from sluice.weights.manifest import Manifest
from sluice.weights.wire import manifest_from_proto

CONTEXT = 128
TOKEN_S = 0.002
ABORT = common_pb2.FINISH_REASON_ABORT


class BreakableRollout(rollout_pb2_grpc.RolloutServiceServicer):
    """All samples of a request take a token every TOKEN_S; one that must be cut off by a deadline takes its time."""

    def __init__(self, broken: str = "") -> None:
        self._broken = broken
        self._held: Manifest | None = None
        self._receiving: tuple[Manifest, str] | None = None
        self._running: dict[str, int] = {}
        self._aborted: set[str] = set()
        self._generated = 0
        self._draining = False

    # --- weights -------------------------------------------------------------------------------------------------

    async def JoinEpoch(self, request: Any, context: grpc.aio.ServicerContext) -> rollout_pb2.JoinEpochResponse:
        if request.backend not in ("gloo", "nccl") and self._broken != "an_unknown_backend_is_refused":
            raise InvalidRequest("backend: must be gloo or nccl")
        if request.backend == "gloo" and self._broken != "a_join_without_a_learner_ends_in_time":
            raise TransferError("no learner")
        return rollout_pb2.JoinEpochResponse()

    async def ReceiveWeights(
        self, request: rollout_pb2.ReceiveWeightsRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.ReceiveWeightsResponse:
        if self._broken == "a_receive_without_a_manifest_is_refused" and not request.manifest.tensors:
            return rollout_pb2.ReceiveWeightsResponse()
        manifest = manifest_from_proto(request.manifest)
        if not request.file_path and self._broken != "a_receive_in_an_unknown_epoch_is_refused":
            raise NotReady("epoch: not joined")
        self._receiving = (manifest, request.file_path)
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(
        self, request: rollout_pb2.ApplyWeightsRequest, context: grpc.aio.ServicerContext
    ) -> rollout_pb2.ApplyWeightsResponse:
        if self._receiving is None:
            if self._broken == "applying_nothing_is_refused":
                return rollout_pb2.ApplyWeightsResponse()
            raise NotReady("no receive was begun")
        (manifest, path), self._receiving = self._receiving, None
        digest = files.read_snapshot(Path(path)).manifest.digest
        if digest != manifest.digest and self._broken != "bytes_that_do_not_verify_change_nothing":
            raise TransferError("another digest")
        if self._broken == "pushed_weights_are_applied":
            digest = ""
        self._held = manifest
        return rollout_pb2.ApplyWeightsResponse(version=version_to_proto(manifest.version), digest=digest)

    # --- generation ----------------------------------------------------------------------------------------------

    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        self._check(request)
        name, samples = request.request_id, list(request.samples)
        if self._broken == "every_sample_comes_once":
            samples += samples[:1]
        if self._broken == "missing_samples_alone_can_be_drawn" and len(samples) == 2:
            samples = [rollout_pb2.SampleSpec(index=index) for index in range(2)]
        lengths = [random.Random(spec.seed).randint(1, 2 * request.sampling.max_tokens) for spec in samples]
        self._running[name] = len(samples)
        try:
            for tokens in range(1, request.sampling.max_tokens + 1):
                await asyncio.sleep(1.0 if self._broken == "a_deadline_that_passes_frees_its_slots" else TOKEN_S)
                ends = tokens == request.sampling.max_tokens
                done = [ends or length == tokens for length in lengths] if name not in self._aborted else [True] * 99
                for spec in [spec for spec, over in zip(samples, done, strict=False) if over]:
                    yield self._response(spec, tokens, request)
                samples, lengths = (
                    [spec for spec, over in zip(samples, done, strict=False) if not over],
                    [length for length, over in zip(lengths, done, strict=False) if not over],
                )
                self._running[name] = len(samples)
        except asyncio.CancelledError:
            if self._broken in ("a_caller_that_cancels_frees_its_slots", "a_deadline_that_passes_frees_its_slots"):
                self._running["of a caller that has left"] = 1
            raise
        finally:
            del self._running[name]

    def _response(
        self, spec: rollout_pb2.SampleSpec, tokens: int, request: rollout_pb2.GenerateRequest
    ) -> rollout_pb2.GenerateResponse:
        assert self._held is not None
        broken, most = self._broken, request.sampling.max_tokens
        reason = common_pb2.FINISH_REASON_LENGTH if tokens == most else common_pb2.FINISH_REASON_STOP
        if request.request_id in self._aborted and broken != "an_aborted_request_ends":
            reason = ABORT
        if broken == "samples_end_for_a_known_reason":
            reason = common_pb2.FINISH_REASON_LENGTH
        if broken == "max_tokens_is_kept":
            tokens += 1
        if broken != "generated_tokens_are_counted":
            self._generated += tokens
        first = 1 if broken == "spans_cover_the_tokens" else 0
        span = common_pb2.VersionSpan(version=version_to_proto(self._held.version), start_token=first, end_token=tokens)
        logprob = 0.5 if broken == "logprobs_are_logarithms_of_probabilities" else -0.5
        logprobs = [logprob] * (tokens + (broken == "a_token_has_one_logprob"))
        sample = common_pb2.Sample(
            index=spec.index,
            seed=spec.seed,
            token_ids=pack_ids([7] * tokens),
            logprobs=pack_floats(logprobs),
            spans=[span],
            finish_reason=reason,
        )
        return rollout_pb2.GenerateResponse(sample=sample)

    def _check(self, request: rollout_pb2.GenerateRequest) -> None:
        broken, sampling = self._broken, request.sampling
        if self._held is None and broken != "nothing_is_generated_without_weights":
            raise NotReady("no weights yet")
        if self._draining and broken != "a_drained_server_takes_no_work":
            raise NotReady("draining")
        if broken == "greedy_is_served" and sampling.temperature == 0:
            raise InvalidRequest("temperature: must be > 0")
        ids, indices = unpack_ids(request.prompt_token_ids), [spec.index for spec in request.samples]
        fine = (
            request.request_id
            and len(ids)
            and all(ids >= 0)
            and indices
            and len(set(indices)) == len(indices)
            and all(spec.seed >= 0 for spec in request.samples)
            and sampling.top_p == 1
            and sampling.top_k == -1
            and sampling.temperature >= 0
            and 0 < sampling.max_tokens <= CONTEXT - len(ids)
        )
        if not fine and broken != "requests_that_cannot_be_served_are_refused":
            raise InvalidRequest("request: cannot be served")
        if request.HasField("required_version") and broken != "another_version_is_refused":
            assert self._held is not None
            if version_from_proto(request.required_version) != self._held.version:
                raise NotReady("another version is held")

    async def Abort(self, request: rollout_pb2.AbortRequest, context: Any) -> rollout_pb2.AbortResponse:
        known = [name for name in request.request_ids if name in self._running]
        self._aborted |= {*known}
        unknown = len(request.request_ids) - len(known)
        extra = unknown if self._broken == "aborting_what_does_not_run_is_no_error" else 0
        return rollout_pb2.AbortResponse(aborted=len(known) + extra)

    async def GetInfo(self, request: Any, context: Any) -> rollout_pb2.RolloutServiceGetInfoResponse:
        held = self._held
        return rollout_pb2.RolloutServiceGetInfoResponse(
            engine="" if self._broken == "it_says_what_it_is" else "timed",
            version=None if held is None else version_to_proto(held.version),
            digest="" if held is None else held.digest,
            running_samples=sum(self._running.values()),
            capacity_samples=32,
            generated_tokens=self._generated,
            max_model_len=CONTEXT,
        )

    async def Drain(self, request: Any, context: Any) -> rollout_pb2.RolloutServiceDrainResponse:
        self._draining = True
        return rollout_pb2.RolloutServiceDrainResponse()


def rollout_server(broken: str = "") -> RpcServer:
    """A server, not yet started."""

    def register(server: grpc.aio.Server) -> None:
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(BreakableRollout(broken), server)

    services = [] if broken == "health_says_serving" else [SERVICE]
    if broken != "a_message_over_the_limit_is_refused":
        return make_server(register, services=services)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    register(server)
    return RpcServer(server=server, services=services)
