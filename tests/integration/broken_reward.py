"""A fake reward service that breaks one promise of the contract: the one that the check of this name looks at."""

import asyncio
from typing import Any

import grpc

from sluice.errors import Overloaded, SluiceError
from sluice.rpc.server import RpcServer, make_server
from sluice.testing.fakes import FakeReward
from sluice.v1 import common_pb2 as common
from sluice.v1 import reward_pb2

OTHER_RESULTS: dict[str, dict[str, Any]] = {
    "a_gold_answer_is_right": {"acc": 0.0},
    "garbage_is_not_right": {"acc": 1.0},
    "statuses_are_known": {"status": 9},
    "scores_are_finite": {"raw_score": float("inf")},
    "shaping_adds_up": {"shaped_reward": 7.0},
    "a_given_score_is_kept": {"acc": 1.0},
    "the_grader_is_named": {"grader_version": ""},
}
"""What is wrong with every result."""

LIMITS_BYTES = {"long_completions_are_graded": 4 << 20, "a_message_over_the_limit_is_refused": -1}
"""Of a message that the server takes, where that is what is broken."""

LARGE_GROUP = 64
"""Samples; such a group takes its time."""


class BrokenReward(FakeReward):
    """Knows one data source; "" breaks nothing."""

    def __init__(self, broken: str = "") -> None:
        super().__init__(data_sources=["sums"])
        self.broken = broken
        self._calls = self._lost_slots = 0
        self._latest: reward_pb2.ScoreRequest | None = None

    def make_server(self) -> RpcServer:
        services = [] if self.broken == "health_says_serving" else [self.service_name]
        if self.broken not in LIMITS_BYTES:
            return make_server(self.add_to, services=services)
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMITS_BYTES[self.broken])])
        self.add_to(server)
        return RpcServer(server=server, services=services)

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self._calls, self._latest = self._calls + 1, request
        if self._lost_slots:
            raise Overloaded("no slot is free")
        if self.broken == "an_empty_group_has_no_results" and not request.items:
            raise SluiceError("nothing to grade")
        if self.broken == "any_text_has_a_result" and any("\0" in item.text for item in request.items):
            raise SluiceError("NUL")
        if len(request.items) == LARGE_GROUP:
            await self._take_long()
        if self.broken == "groups_at_once_do_not_mix":
            await asyncio.sleep(0.2)  # until the others are here
            request = self._latest
        answer = await super().Score(request, context)
        if self.broken == "results_stand_in_the_order_of_items":
            return reward_pb2.ScoreResponse(results=[*reversed(answer.results)])
        return answer

    def grade(self, request: reward_pb2.ScoreRequest, item: reward_pb2.ScoreItem) -> common.SampleReward:
        made = super().grade(request, item)
        for name, value in OTHER_RESULTS.get(self.broken, {}).items():
            setattr(made, name, value)
        if self.broken == "truncated_completions_are_graded" and item.finish_reason == common.FINISH_REASON_LENGTH:
            made.status = common.REWARD_STATUS_ERROR
        if self.broken == "the_same_request_has_the_same_results":
            made.extracted = str(self._calls)
        return made

    def check_source(self, request: reward_pb2.ScoreRequest) -> None:
        if self.broken not in ("an_unknown_data_source_is_refused", "graders_are_listed"):
            super().check_source(request)

    def check_extra_info(self, request: reward_pb2.ScoreRequest) -> None:
        if self.broken != "extra_info_that_is_no_json_is_refused":
            super().check_extra_info(request)

    def check_items(self, request: reward_pb2.ScoreRequest) -> None:
        if self.broken != "items_that_cannot_be_are_refused":
            super().check_items(request)

    async def ListGraders(self, request: Any, context: Any) -> reward_pb2.ListGradersResponse:
        if self.broken == "graders_are_listed":
            return reward_pb2.ListGradersResponse()
        return await super().ListGraders(request, context)

    async def _take_long(self) -> None:
        """Slots of callers that have left stay taken where that is what is broken."""
        try:
            await asyncio.sleep(3600 if self.broken == "a_group_is_answered_before_the_deadline" else 0.2)
        except asyncio.CancelledError:
            self._lost_slots += self.broken == "a_caller_that_leaves_holds_up_nobody"
            raise
