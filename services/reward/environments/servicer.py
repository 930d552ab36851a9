"""EnvironmentService on the wire: decode, ask the host, encode. Decides nothing but the limit of a call."""

import json
from typing import Any, Final

import grpc

from services.reward.environments.host import EnvironmentHost
from sluice.environments import Row
from sluice.errors import InvalidRequest
from sluice.rpc.chat_messages import message_from, message_to, score_to, tool_to
from sluice.rpc.requests import duration_s, name
from sluice.v1 import common_pb2, environment_pb2, environment_pb2_grpc

SERVICE_NAME = environment_pb2.DESCRIPTOR.services_by_name["EnvironmentService"].full_name

MOST_TURNS: Final = 10_000

_ROLES = ("system", "user", "assistant", "tool")
_ANSWER_MARGIN_S = 0.5
"""Before the caller's deadline, for encoding and sending the answer."""
_LEAST_S = 1.0
"""A call goes on for so long whatever its caller's deadline: its process, which others use, is not ended for a hurry."""


class EnvironmentServicer(environment_pb2_grpc.EnvironmentServiceServicer):
    """See protos/sluice/v1/environment.proto."""

    def __init__(self, host: EnvironmentHost, *, turn_timeout_s: float) -> None:
        self._host, self._turn_timeout_s = host, turn_timeout_s

    async def ListEnvironments(
        self, request: environment_pb2.ListEnvironmentsRequest, context: grpc.aio.ServicerContext
    ) -> environment_pb2.ListEnvironmentsResponse:
        return environment_pb2.ListEnvironmentsResponse(environments=infos(self._host))

    async def Open(
        self, request: environment_pb2.OpenRequest, context: grpc.aio.ServicerContext
    ) -> environment_pb2.OpenResponse:
        row = _row(request)
        opening = await self._host.open(
            name(request.episode_id, field="open: episode_id"),
            request.environment,
            row,
            lease_s=duration_s(request.lease_s, field="open: lease_s"),
            limit_s=self._limit_s(context),
        )
        version = next(one.facts.version for one in self._host.hosted if one.name == request.environment)
        return environment_pb2.OpenResponse(
            messages=map(message_to, opening.messages), tools=map(tool_to, opening.tools), version=version
        )

    async def Step(
        self, request: environment_pb2.StepRequest, context: grpc.aio.ServicerContext
    ) -> environment_pb2.StepResponse:
        if request.turn < 0:
            raise InvalidRequest(f"step: turn: must be >= 0, got {request.turn}")
        if request.message.role != "assistant":
            raise InvalidRequest(f"step: message.role: must be assistant, got {request.message.role[:40]!r}")
        if request.finish_reason not in (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH):
            raise InvalidRequest(f"step: finish_reason: must be STOP or LENGTH, got {request.finish_reason}")
        reply = await self._host.step(
            name(request.episode_id, field="step: episode_id"),
            request.turn,
            message_from(request.message),
            last=request.last,
            limit_s=self._limit_s(context),
        )
        return environment_pb2.StepResponse(
            messages=map(message_to, reply.messages),
            done=reply.done,
            score=None if reply.score is None else score_to(reply.score),
        )

    async def Close(
        self, request: environment_pb2.CloseRequest, context: grpc.aio.ServicerContext
    ) -> environment_pb2.CloseResponse:
        await self._host.close(name(request.episode_id, field="close: episode_id"))
        return environment_pb2.CloseResponse()

    def _limit_s(self, context: grpc.aio.ServicerContext) -> float:
        left_s = context.time_remaining()
        if left_s is None:
            return self._turn_timeout_s
        return min(self._turn_timeout_s, max(_LEAST_S, left_s - min(_ANSWER_MARGIN_S, left_s / 10)))


def infos(host: EnvironmentHost) -> list[environment_pb2.EnvironmentInfo]:
    """The hosted environments."""
    return [
        environment_pb2.EnvironmentInfo(name=one.name, version=one.facts.version, scores=one.facts.scores)
        for one in host.hosted
    ]


def _row(request: environment_pb2.OpenRequest) -> Row:
    """Wire -> core. Raises InvalidRequest."""
    if not 0 < request.max_turns <= MOST_TURNS:
        raise InvalidRequest(f"open: max_turns: must be 1 to {MOST_TURNS}, got {request.max_turns}")
    for message in request.messages:
        if message.role not in _ROLES:
            raise InvalidRequest(f"open: messages: role must be one of {', '.join(_ROLES)}, got {message.role[:40]!r}")
    return Row(
        messages=tuple(map(message_from, request.messages)),
        data_source=request.data_source,
        ground_truth=request.ground_truth,
        extra_info=_object(request.extra_info_json, "extra_info_json"),
        arguments=_object(request.arguments_json, "arguments_json"),
        seed=request.seed,
        max_turns=request.max_turns,
    )


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"open: {field}: must be JSON: {error}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"open: {field}: must be a JSON object, got {type(value).__name__}")
    return value
