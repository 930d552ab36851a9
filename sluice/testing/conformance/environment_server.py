"""An environment server under check: requests to send, and the row that its episodes are of."""

import contextlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from sluice.clock import Clock, SystemClock
from sluice.errors import ConfigError
from sluice.testing.conformance.suite import NotApplicable, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S
from sluice.v1 import common_pb2, environment_pb2

STOP = common_pb2.FINISH_REASON_STOP
LEASE_S = 30.0
MAX_TURNS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentServer:
    """One server."""

    channel: grpc.aio.Channel
    stub: Any
    info: environment_pb2.EnvironmentInfo | None
    """The environment under check; None when the server lists none."""
    row: Mapping[str, Any]
    """Fields of OpenRequest that a row fills."""
    clock: Clock = field(default_factory=SystemClock)
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _prefix: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def known(self) -> environment_pb2.EnvironmentInfo:
        """The environment under check. Raises NotApplicable when there is none."""
        if self.info is None:
            raise NotApplicable("no environment to check: the server lists none of that name")
        return self.info

    def opening(self, **changes: Any) -> environment_pb2.OpenRequest:
        """A request for an episode with a fresh id."""
        fields: dict[str, Any] = {
            "episode_id": f"conformance-{self._prefix}-{next(self._names)}",
            "environment": self.known.name,
            "seed": 7,
            "lease_s": LEASE_S,
            "max_turns": MAX_TURNS,
        }
        return environment_pb2.OpenRequest(**(fields | dict(self.row) | changes))

    async def open(self, request: environment_pb2.OpenRequest) -> environment_pb2.OpenResponse:
        """Opens the request's episode."""
        return await self.stub.Open(request, timeout=CALL_TIMEOUT_S)

    async def step(
        self, episode_id: str, text: str = "?", *, timeout_s: float = CALL_TIMEOUT_S, **changes: Any
    ) -> environment_pb2.StepResponse:
        """Gives the environment a turn, by default the first, and takes its answer."""
        message = common_pb2.ChatMessage(role="assistant", content=text)
        fields: dict[str, Any] = {"episode_id": episode_id, "turn": 0, "message": message, "finish_reason": STOP}
        return await self.stub.Step(environment_pb2.StepRequest(**(fields | changes)), timeout=timeout_s)

    async def close(self, episode_id: str) -> None:
        """Ends an episode."""
        await self.stub.Close(environment_pb2.CloseRequest(episode_id=episode_id), timeout=CALL_TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def episode(self, **changes: Any) -> AsyncIterator[str]:
        """The id of an open episode, which is closed in the end."""
        request = self.opening(**changes)
        await self.open(request)
        try:
            yield request.episode_id
        finally:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.close(request.episode_id)

    async def whole_episode(self, **changes: Any) -> list[environment_pb2.StepResponse]:
        """The answers of an episode of at most MAX_TURNS turns, up to the one that says done or belongs to the last turn."""
        answers: list[environment_pb2.StepResponse] = []
        async with self.episode(**changes) as episode_id:
            for turn in range(MAX_TURNS):
                answers.append(await self.step(episode_id, turn=turn, last=turn == MAX_TURNS - 1))
                if answers[-1].done:
                    break
        require(bool(answers), "no answer")
        return answers


def row_fields(text: str) -> dict[str, Any]:
    """The fields of OpenRequest in a row of a data file (one JSON object). Raises ConfigError."""
    try:
        row = json.loads(text) if text else {}
        if not isinstance(row, dict):
            raise ValueError("it is no object")
        prompt = row.get("prompt", "Begin.")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        truth = (row.get("reward_model") or {}).get("ground_truth", "42")
        return {
            "messages": [common_pb2.ChatMessage(role=turn["role"], content=turn["content"]) for turn in turns],
            "data_source": row.get("data_source", "conformance"),
            "ground_truth": truth if isinstance(truth, str) else json.dumps(truth),
            **({"extra_info_json": json.dumps(row["extra_info"])} if row.get("extra_info") else {}),
            **({"arguments_json": json.dumps(row["env_args"])} if row.get("env_args") else {}),
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"--row: must be a row of a data file, a JSON object with prompt, data_source, reward_model, env_args: {error}, "
            f"got {text[:80]!r}"
        ) from error
