"""A reward service without graders that keeps the contract of reward servers (sluice/testing/conformance)."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from sluice.errors import InvalidRequest
from sluice.testing.fakes.service import FakeService
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import reward_pb2, reward_pb2_grpc

ANY_SOURCE = ("*",)


class FakeReward(FakeService, reward_pb2_grpc.RewardServiceServicer):
    """Grades a text as right that contains the gold answer or the word "right"."""

    service_name = "sluice.v1.RewardService"
    role = pb.SERVICE_ROLE_REWARD

    def __init__(
        self,
        *,
        service_id: str = "reward-0",
        data_sources: Sequence[str] = ANY_SOURCE,
        wrong: Callable[[int], bool] = lambda number: False,
        **standing: Any,
    ) -> None:
        """Training groups whose number is `wrong` have no right sample."""
        super().__init__(service_id=service_id, **standing)
        self.data_sources, self.wrong = data_sources, wrong
        self.nan_of = ""
        """The group whose samples have a raw score that is not a number."""

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        if not any(item.HasField("given") for item in request.items):
            self.check_source(request)
        self.check_extra_info(request)
        self.check_items(request)
        return reward_pb2.ScoreResponse(results=[self.grade(request, item) for item in request.items])

    def grade(self, request: reward_pb2.ScoreRequest, item: reward_pb2.ScoreItem) -> common.SampleReward:
        """The result of one sample; an environment's verdict as it was given."""
        if item.HasField("given"):
            return _as_given(request, item)
        number = re.search(r"-(\d{7})$", request.group_id)  # of a training group
        wrong = number is not None and self.wrong(int(number[1]))
        acc = float(not wrong and (item.text == "right" or request.ground_truth in item.text))
        raw = float("nan") if request.group_id == self.nan_of else acc
        return common.SampleReward(
            status=common.REWARD_STATUS_OK,
            raw_score=raw,
            acc=acc,
            extracted="right" if acc else "wrong",
            shaped_reward=raw,
            grader="fake",
            grader_version="1",
        )

    def check_source(self, request: reward_pb2.ScoreRequest) -> None:
        """Raises InvalidRequest for a source that has no grader."""
        if self.data_sources != ANY_SOURCE and request.data_source not in self.data_sources:
            raise InvalidRequest(f"data_source: must be one of {[*self.data_sources]}")

    def check_extra_info(self, request: reward_pb2.ScoreRequest) -> None:
        """Raises InvalidRequest for extra info that is no JSON object."""
        try:
            holds = isinstance(json.loads(request.extra_info_json or "{}"), dict)
        except ValueError:
            holds = False
        if not holds:
            raise InvalidRequest("extra_info_json: must be a JSON object")

    def check_items(self, request: reward_pb2.ScoreRequest) -> None:
        """Raises InvalidRequest for samples that no rollout returns."""
        for item in request.items:
            if item.finish_reason == common.FINISH_REASON_UNSPECIFIED or item.response_tokens < 0:
                raise InvalidRequest("items: finish_reason must be set, response_tokens >= 0")

    async def ListGraders(self, request: Any, context: Any) -> reward_pb2.ListGradersResponse:
        grader = reward_pb2.GraderInfo(name="fake", version="1", data_sources=[*self.data_sources])
        return reward_pb2.ListGradersResponse(graders=[grader])


def _as_given(request: reward_pb2.ScoreRequest, item: reward_pb2.ScoreItem) -> common.SampleReward:
    return common.SampleReward(
        status=common.REWARD_STATUS_OK,
        raw_score=item.given.score,
        acc=item.given.acc,
        extracted=item.given.extracted,
        parts=item.given.parts,
        shaped_reward=item.given.score,
        grader=f"environment:{request.environment}",
    )
