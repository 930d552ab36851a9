"""RewardService on the wire: decode, score, encode. Decides nothing."""

import json
import time
from collections.abc import Mapping

import grpc

from services.reward.alarm import GradingAlarm
from services.reward.ports import Grade, OutcomeStatus, Question
from services.reward.routing import Router
from services.reward.scoring import SampleToScore, ScoredGroup, Scorer
from sluice.errors import InvalidRequest, Overloaded
from sluice.limits import MOST_PARTS
from sluice.rpc.traced import note
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import common_pb2, reward_pb2, reward_pb2_grpc

# Margin before the caller's deadline, for encoding and sending the answer.
_ANSWER_MARGIN_S = 0.5

_STATUS: Mapping[OutcomeStatus, common_pb2.RewardStatus.ValueType] = {
    "ok": common_pb2.REWARD_STATUS_OK,
    "unparsed": common_pb2.REWARD_STATUS_UNPARSED,
    "timeout": common_pb2.REWARD_STATUS_TIMEOUT,
    "error": common_pb2.REWARD_STATUS_ERROR,
}


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """See protos/sluice/v1/reward.proto."""

    def __init__(self, *, scorer: Scorer, router: Router, alarm: GradingAlarm, exporter: Exporter) -> None:
        self._scorer, self._alarm = scorer, alarm
        self._router = router
        self._graded = {status: exporter.counter(f"reward/{status}").labels("reward") for status in _STATUS}

    async def Score(
        self, request: reward_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        """Scores one group. RESOURCE_EXHAUSTED when the queue is full, or when a service that a grader asks is away."""
        samples, given = samples_of(request), given_of(request)
        if given is None:
            question, deadline_s = question_of(request), _deadline_s(context)
            scored = await self._scorer.score(question=question, samples=samples, deadline_s=deadline_s)
        else:
            scored = self._scorer.shape(
                samples, given, environment=request.environment, version=request.environment_version
            )
        note(gen_ai__evaluation__name=scored.grader, sluice__samples=len(scored.rewards))
        if away := next((reward for reward in scored.rewards if reward.busy), None):
            raise Overloaded(away.detail)  # the whole group is graded again, so that one grading covers all of it
        for reward in scored.rewards:
            self._graded[reward.status].inc()
        self._alarm.note(scored.rewards)
        return reward_pb2.ScoreResponse(results=_results(scored))

    async def ListGraders(
        self, request: reward_pb2.ListGradersRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.ListGradersResponse:
        """Lists the verifiers in the order in which data sources are looked up."""
        return reward_pb2.ListGradersResponse(
            graders=[
                reward_pb2.GraderInfo(name=route.name, version=route.version, data_sources=route.data_sources)
                for route in self._router.routes()
            ]
        )


def question_of(request: reward_pb2.ScoreRequest) -> Question:
    """Wire -> core. Raises InvalidRequest."""
    try:
        extra_info = json.loads(request.extra_info_json or "{}")
    except ValueError as error:
        raise InvalidRequest(f"extra_info_json: must be JSON: {error}") from error
    if extra_info is None:
        extra_info = {}
    if not isinstance(extra_info, dict):
        raise InvalidRequest(f"extra_info_json: must be a JSON object, got {type(extra_info).__name__}")
    return Question(
        data_source=request.data_source,
        prompt_text=request.prompt_text,
        ground_truth=request.ground_truth,
        extra_info=extra_info,
    )


def samples_of(request: reward_pb2.ScoreRequest) -> list[SampleToScore]:
    """Wire -> core. Raises InvalidRequest."""
    return [_sample(item, position) for position, item in enumerate(request.items)]


def given_of(request: reward_pb2.ScoreRequest) -> list[Grade] | None:
    """The environment's verdicts, one a sample; None where a grader is asked. Raises InvalidRequest for a mixture."""
    has = [item.HasField("given") for item in request.items]
    if not any(has):
        return None
    if not all(has):
        raise InvalidRequest(f"items[{has.index(False)}].given: must be set, as it is for other items of the group")
    return [
        Grade(
            raw_score=item.given.score,
            acc=item.given.acc,
            extracted=item.given.extracted,
            parts={name: item.given.parts[name] for name in sorted(item.given.parts)[:MOST_PARTS]},
        )
        for item in request.items
    ]


def _sample(item: reward_pb2.ScoreItem, position: int) -> SampleToScore:
    if item.finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED:
        raise InvalidRequest(f"items[{position}].finish_reason: must be set")
    if item.response_tokens < 0:
        raise InvalidRequest(f"items[{position}].response_tokens: must be >= 0, got {item.response_tokens}")
    return SampleToScore(
        text=item.text,
        response_tokens=item.response_tokens,
        finished=item.finish_reason == common_pb2.FINISH_REASON_STOP,
    )


def _deadline_s(context: grpc.aio.ServicerContext) -> float | None:
    """Monotonic seconds by which to answer; None for a caller without a deadline."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else time.monotonic() + remaining_s - _ANSWER_MARGIN_S


def _results(scored: ScoredGroup) -> list[common_pb2.SampleReward]:
    return [
        common_pb2.SampleReward(
            status=_STATUS[reward.status],
            raw_score=reward.raw_score,
            acc=reward.acc,
            extracted=reward.extracted,
            shaped_reward=reward.shaped_reward,
            overlong_penalty=reward.overlong_penalty,
            grader=scored.grader,
            grader_version=scored.grader_version,
            detail=reward.detail,
            parts=reward.parts,
        )
        for reward in scored.rewards
    ]
