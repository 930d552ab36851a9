"""A fake rollout that breaks one promise of the contract: the one that the check of this name looks at."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from sluice.errors import InvalidRequest, SluiceError
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.rpc.server import RpcServer, make_server
from sluice.testing.fakes import FakeRollout, Lengths, TimedEngine
from sluice.testing.fakes.rollout import Running
from sluice.v1 import common_pb2 as common
from sluice.v1 import rollout_pb2

OTHER_SAMPLES: dict[str, Callable[[common.Sample], dict[str, Any]]] = {
    "missing_samples_alone_can_be_drawn": lambda sample: {"index": sample.index % 2},
    "a_token_has_one_logprob": lambda sample: {"logprobs": sample.logprobs + pack_floats([-0.5])},
    "logprobs_are_logarithms_of_probabilities": lambda sample: {"logprobs": pack_floats([0.5] * _tokens(sample))},
    "spans_cover_the_tokens": lambda sample: {"spans": [common.VersionSpan(start_token=1, end_token=_tokens(sample))]},
    "samples_end_for_a_known_reason": lambda sample: {"finish_reason": common.FINISH_REASON_LENGTH},
    "max_tokens_is_kept": lambda sample: {"token_ids": sample.token_ids + pack_ids([7])},
    "an_aborted_request_ends": lambda sample: {"finish_reason": common.FINISH_REASON_STOP},
}
"""What is wrong with every sample."""


class BrokenRollout(FakeRollout):
    """Tokens take their time; "" breaks nothing."""

    def __init__(self, broken: str = "") -> None:
        engine = TimedEngine(lengths=Lengths(median=12, sigma=0.8), token_s=0.002)
        super().__init__(engine=engine, capacity=32)
        self.broken = broken

    def make_server(self) -> RpcServer:
        services = [] if self.broken == "health_says_serving" else [self.service_name]
        if self.broken != "a_message_over_the_limit_is_refused":
            return make_server(self.add_to, services=services)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        self.add_to(server)
        return RpcServer(server=server, services=services)

    async def Generate(self, request: rollout_pb2.GenerateRequest, context: Any) -> AsyncIterator[Any]:
        async for answer in super().Generate(request, context):
            yield answer
            if self.broken == "every_sample_comes_once":
                yield answer

    def check_standing(self, request: rollout_pb2.GenerateRequest) -> None:
        match self.broken:
            case "nothing_is_generated_without_weights":
                self.held = common.WeightManifest()
            case "a_drained_server_takes_no_work":
                self.draining = False
            case "another_version_is_refused":
                request.ClearField("required_version")
        super().check_standing(request)

    def check_request(self, request: rollout_pb2.GenerateRequest) -> None:
        if self.broken == "greedy_is_served" and request.sampling.temperature == 0:
            raise InvalidRequest("temperature: must be > 0")
        if self.broken == "an_evaluation_may_lower_top_p" and request.sampling.top_p != 1:
            raise InvalidRequest("sampling: must be neutral")
        if self.broken != "requests_that_cannot_be_served_are_refused":
            super().check_request(request)

    async def sample(
        self, request: rollout_pb2.GenerateRequest, spec: rollout_pb2.SampleSpec, running: Running
    ) -> common.Sample:
        made = await super().sample(request, spec, running)
        if self.broken not in OTHER_SAMPLES:
            return made
        return common.Sample(
            **{field.name: value for field, value in made.ListFields()} | OTHER_SAMPLES[self.broken](made)
        )

    def end_of(self, request_id: str) -> None:
        if self.broken not in ("a_caller_that_cancels_frees_its_slots", "a_deadline_that_passes_frees_its_slots"):
            super().end_of(request_id)

    async def Abort(self, request: rollout_pb2.AbortRequest, context: Any) -> rollout_pb2.AbortResponse:
        answer = await super().Abort(request, context)
        if self.broken == "aborting_what_does_not_run_is_no_error":
            answer.aborted = len(request.request_ids)
        return answer

    async def GetInfo(self, request: Any, context: Any) -> rollout_pb2.RolloutServiceGetInfoResponse:
        answer = await super().GetInfo(request, context)
        if self.broken == "it_says_what_it_is":
            answer.engine = ""
        if self.broken == "generated_tokens_are_counted":
            answer.generated_tokens = 0
        return answer

    async def JoinEpoch(self, request: rollout_pb2.JoinEpochRequest, context: Any) -> rollout_pb2.JoinEpochResponse:
        if self.broken in ("an_unknown_backend_is_refused", "a_join_without_a_learner_ends_in_time"):
            return rollout_pb2.JoinEpochResponse()
        return await super().JoinEpoch(request, context)

    async def ReceiveWeights(
        self, request: rollout_pb2.ReceiveWeightsRequest, context: Any
    ) -> rollout_pb2.ReceiveWeightsResponse:
        if self.broken in ("a_receive_without_a_manifest_is_refused", "a_receive_in_an_unknown_epoch_is_refused"):
            return rollout_pb2.ReceiveWeightsResponse()
        return await super().ReceiveWeights(request, context)

    async def ApplyWeights(
        self, request: rollout_pb2.ApplyWeightsRequest, context: Any
    ) -> rollout_pb2.ApplyWeightsResponse:
        broken, receiving = self.broken, self.receiving
        try:
            answer = await super().ApplyWeights(request, context)
        except SluiceError:
            if broken not in ("applying_nothing_is_refused", "bytes_that_do_not_verify_change_nothing"):
                raise
            self.held = receiving[0] if receiving is not None else self.held
            return rollout_pb2.ApplyWeightsResponse()
        if broken == "pushed_weights_are_applied":
            answer.digest = ""
        return answer


def _tokens(sample: common.Sample) -> int:
    return len(sample.token_ids) // 4
