"""The calls to a coordinator: each call's request, its time limit, and how its answer is read. Sends nothing."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from sluice.errors import InvalidRequest
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb

Status = pb.GetStatusResponse
Event = pb.WatchEventsResponse
Group = pb.GetGroupResponse

T = TypeVar("T")

CALL_TIMEOUT_S = 10.0
LONG_CALL_TIMEOUT_S = 900.0
"""Limit of calls that wait for work to end: drain, evaluate, checkpoint, rollback."""

_READS = ("GetStatus", "GetConfig", "GetLedger", "GetGroup", "ListGroups", "WatchEvents")

RETRIED_READS = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "sluice.v1.CoordinatorService", "method": method} for method in _READS],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)
"""gRPC's own retries with gRPC's jitter, for 3 s at most, of calls that only read. Calls that change a run are sent once."""


class RunState(IntEnum):
    """Where a run stands: sluice.v1.RunState, so that `status.state == RunState.PAUSED`. `str(RunState.PAUSED)` is "paused"."""

    UNSPECIFIED = pb.RUN_STATE_UNSPECIFIED
    STARTING = pb.RUN_STATE_STARTING
    RUNNING = pb.RUN_STATE_RUNNING
    PAUSED = pb.RUN_STATE_PAUSED
    DRAINING = pb.RUN_STATE_DRAINING
    FINISHING = pb.RUN_STATE_FINISHING
    FINISHED = pb.RUN_STATE_FINISHED
    FAILED = pb.RUN_STATE_FAILED
    STOPPED = pb.RUN_STATE_STOPPED
    STARVED = pb.RUN_STATE_STARVED

    def __str__(self) -> str:
        return self.name.lower()

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.STOPPED, RunState.STARVED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt to train on. `prompt` is text or a chat ([{"role": ..., "content": ...}]); the grader gets `extra_info`.

    `environment` names one of the recipe's environments, which gets `env_args`; empty: that of data.environment."""

    data_source: str
    prompt: str | Sequence[Mapping[str, str]]
    ground_truth: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    env_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call(Generic[T]):
    """One unary call."""

    method: str
    request: Message
    read: Callable[[Any], T]
    timeout_s: float = CALL_TIMEOUT_S


def status(*, patience_s: float = CALL_TIMEOUT_S) -> Call[Status]:
    """GetStatus."""
    return Call(method="GetStatus", request=pb.GetStatusRequest(), read=_itself, timeout_s=patience_s)


def pause() -> Call[RunState]:
    """Pause."""
    return Call(method="Pause", request=pb.PauseRequest(), read=_state)


def resume() -> Call[RunState]:
    """Resume."""
    return Call(method="Resume", request=pb.ResumeRequest(), read=_state)


def drain(timeout_s: float) -> Call[RunState]:
    """Drain. The coordinator gives up before the call's limit, so that the coordinator's message says what is in flight."""
    if not 0 < timeout_s < 1e6:
        raise InvalidRequest(f"drain: timeout_s must be more than 0 and less than 1e6, got {timeout_s:g}")
    request = pb.DrainRequest(timeout_s=timeout_s)
    return Call(method="Drain", request=request, read=_state, timeout_s=timeout_s + CALL_TIMEOUT_S)


def stop(reason: str) -> Call[RunState]:
    """Stop."""
    return Call(method="Stop", request=pb.StopRequest(reason=reason), read=_state)


def scale(role: str, replicas: int) -> Call[int]:
    """Scale."""
    roles = {"rollout": pb.SERVICE_ROLE_ROLLOUT, "reward": pb.SERVICE_ROLE_REWARD}
    if role not in roles or not 0 <= replicas < 2**31:
        raise InvalidRequest(
            f"scale: must be a number >= 0 of rollouts or rewards, got {replicas} of {role!r}",
            fix='name "rollout" or "reward" and how many',
        )
    request = pb.ScaleRequest(role=roles[role], replicas=replicas)
    return Call(method="Scale", request=request, read=lambda answer: answer.replicas)


def report_places(places: Iterable[pb.Place], *, scaled: pb.ScaleOutcome | None) -> Call[None]:
    """ReportPlaces."""
    request = pb.ReportPlacesRequest(places=places, scaled=scaled)
    return Call(method="ReportPlaces", request=request, read=lambda answer: None)


def save_checkpoint() -> Call[pb.SaveCheckpointResponse]:
    """SaveCheckpoint."""
    request = pb.SaveCheckpointRequest()
    return Call(method="SaveCheckpoint", request=request, read=_itself, timeout_s=LONG_CALL_TIMEOUT_S)


def evaluate(prompts: int, n: int, set_name: str, *, timeout_s: float) -> Call[pb.Evaluation]:
    """Evaluate."""
    if not 0 < timeout_s < 1e6:
        raise InvalidRequest(f"evaluate: timeout_s must be more than 0 and less than 1e6, got {timeout_s:g}")
    request = pb.EvaluateRequest(prompts=prompts, n=n, set=set_name)
    return Call(method="Evaluate", request=request, read=lambda answer: answer.evaluation, timeout_s=timeout_s)


def rollback(to: int, *, preview: bool) -> Call[pb.RollbackResponse]:
    """Rollback."""
    request = pb.RollbackRequest(to=to, preview=preview)
    return Call(method="Rollback", request=request, read=_itself, timeout_s=LONG_CALL_TIMEOUT_S)


def submit(prompts: Iterable[Prompt]) -> Call[list[str]]:
    """SubmitPrompts."""
    request = pb.SubmitPromptsRequest(prompts=[_user_prompt(prompt) for prompt in prompts])
    return Call(method="SubmitPrompts", request=request, read=lambda answer: list(answer.prompt_ids))


def groups(state: str, limit: int) -> Call[list[pb.GroupSummary]]:
    """ListGroups."""
    request = pb.ListGroupsRequest(state=state, limit=limit)
    return Call(method="ListGroups", request=request, read=lambda answer: list(answer.groups))


def group(group_id: str | int) -> Call[Group]:
    """GetGroup."""
    return Call(method="GetGroup", request=pb.GetGroupRequest(group_id=str(group_id)), read=_itself)


def ledger() -> Call[pb.Ledger]:
    """GetLedger."""
    return Call(method="GetLedger", request=pb.GetLedgerRequest(), read=lambda answer: answer.ledger)


def config() -> Call[str]:
    """GetConfig."""
    return Call(method="GetConfig", request=pb.GetConfigRequest(), read=lambda answer: answer.yaml)


def weights_version() -> Call[common.PolicyVersion]:
    """The version of GetStatus."""
    return Call(method="GetStatus", request=pb.GetStatusRequest(), read=lambda answer: answer.version)


def _itself(answer: Any) -> Any:
    return answer


def _state(answer: Any) -> RunState:
    return RunState(answer.state)


def _user_prompt(prompt: Prompt) -> pb.UserPrompt:
    text = prompt.prompt if isinstance(prompt.prompt, str) else json.dumps([dict(turn) for turn in prompt.prompt])
    return pb.UserPrompt(
        data_source=prompt.data_source,
        prompt=text,
        ground_truth=prompt.ground_truth,
        extra_info_json=json.dumps(dict(prompt.extra_info)) if prompt.extra_info else "",
        environment=prompt.environment,
        environment_args_json=json.dumps(dict(prompt.env_args)) if prompt.env_args else "",
    )
