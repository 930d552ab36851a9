"""A reward server that keeps the contract, but for the one promise that it is told to break: a check's name."""

import asyncio
import json

import grpc

from sluice.errors import InvalidRequest, Overloaded, SluiceError
from sluice.rpc.server import RpcServer, make_server
from sluice.testing.conformance.reward_checks import SERVICE
from sluice.v1 import common_pb2, reward_pb2, reward_pb2_grpc

OK, ERROR = common_pb2.REWARD_STATUS_OK, common_pb2.REWARD_STATUS_ERROR


class BreakableReward(reward_pb2_grpc.RewardServiceServicer):
    """Right is `#` and the ground truth."""

    def __init__(self, broken: str = "") -> None:
        self._broken = broken
        self._calls = 0
        self._lost_slots = 0
        self._latest: reward_pb2.ScoreRequest | None = None

    async def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        self._check(request)
        self._latest = request
        self._calls += 1
        if len(request.items) == 64:
            await self._take_long()
        if self._broken == "groups_at_once_do_not_mix":
            await asyncio.sleep(0.2)  # until the others are here
            request = self._latest
        results = [self._grade(request.ground_truth, item) for item in request.items]
        if self._broken == "results_stand_in_the_order_of_items":
            results.reverse()
        return reward_pb2.ScoreResponse(results=results)

    async def ListGraders(
        self, request: reward_pb2.ListGradersRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ListGradersResponse:
        if self._broken == "graders_are_listed":
            return reward_pb2.ListGradersResponse()
        grader = reward_pb2.GraderInfo(name="breakable", version="1", data_sources=["sums"])
        return reward_pb2.ListGradersResponse(graders=[grader])

    def _check(self, request: reward_pb2.ScoreRequest) -> None:
        known = request.data_source == "sums" or self._broken in (
            "an_unknown_data_source_is_refused",
            "graders_are_listed",
        )
        if not known:
            raise InvalidRequest("data_source: sums alone is known")
        if self._broken == "an_empty_group_has_no_results" and not request.items:
            raise SluiceError("nothing to grade")
        if self._broken == "any_text_has_a_result" and any("\0" in item.text for item in request.items):
            raise SluiceError("NUL")
        if self._broken != "extra_info_that_is_no_json_is_refused":
            extra_info = json.loads(request.extra_info_json or "{}")
            if not isinstance(extra_info, dict):
                raise InvalidRequest("extra_info_json: must be an object")
        if self._broken != "items_that_cannot_be_are_refused":
            for item in request.items:
                if item.finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED or item.response_tokens < 0:
                    raise InvalidRequest("items: finish_reason must be set, response_tokens >= 0")
        if self._lost_slots:
            raise Overloaded("no slot is free")

    async def _take_long(self) -> None:
        """Slots of callers that have left stay taken where that is what is broken."""
        try:
            await asyncio.sleep(3600 if self._broken == "a_group_is_answered_before_the_deadline" else 0.2)
        except asyncio.CancelledError:
            self._lost_slots += self._broken == "a_caller_that_leaves_holds_up_nobody"
            raise

    def _grade(self, ground_truth: str, item: reward_pb2.ScoreItem) -> common_pb2.SampleReward:
        right = float(item.text == f"#{ground_truth}")
        result = common_pb2.SampleReward(
            status=OK,
            raw_score=right,
            acc=right,
            shaped_reward=right - 0.5,
            overlong_penalty=-0.5,
            extracted=item.text[-100:],
            grader="breakable",
            grader_version="1",
        )
        match self._broken:
            case "a_gold_answer_is_right":
                result.acc = 0
            case "garbage_is_not_right":
                result.acc = 1
            case "statuses_are_known":
                result.status = 9  # type: ignore[assignment]
            case "scores_are_finite":
                result.raw_score = float("inf")
            case "shaping_adds_up":
                result.shaped_reward += 1
            case "the_grader_is_named":
                result.grader_version = ""
            case "truncated_completions_are_graded" if item.finish_reason == common_pb2.FINISH_REASON_LENGTH:
                result.status = ERROR
            case "the_same_request_has_the_same_results":
                result.extracted = str(self._calls)
        return result


_LIMITS = {"long_completions_are_graded": 4 << 20, "a_message_over_the_limit_is_refused": -1}
"""Bytes of a message that the server takes, where that is what is broken."""


def reward_server(broken: str = "") -> RpcServer:
    """A server, not yet started."""

    def register(server: grpc.aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(BreakableReward(broken), server)

    services = [] if broken == "health_says_serving" else [SERVICE]
    if broken not in _LIMITS:
        return make_server(register, services=services)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _LIMITS[broken])])
    register(server)
    return RpcServer(server=server, services=services)
