"""Clients of the coordinator's API: `AsyncClient` for programs with an event loop, `Client` for scripts.

    with Client("127.0.0.1:50050") as client:
        print(client.status().step)

Failed calls raise `grpc.RpcError`, whose `code()` and `details()` say what is wrong and how to mend it.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from sluice.rpc.channel import open_blocking_channel, open_channel
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc

CALL_TIMEOUT_S = 10.0
LONG_CALL_TIMEOUT_S = 900.0
"""Limit of calls that wait for work to end: drain, evaluate, checkpoint."""

ROLES = {"rollout": pb.SERVICE_ROLE_ROLLOUT, "reward": pb.SERVICE_ROLE_REWARD}


class AsyncClient:
    """The coordinator's API inside an event loop. Close it with `await client.close()`."""

    def __init__(self, address: str, *, credentials: Credentials = NO_CREDENTIALS) -> None:
        self._channel = open_channel(address, credentials=credentials)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)

    async def status(self) -> pb.GetStatusResponse:
        """Where the run stands."""
        return await self._stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_TIMEOUT_S)

    def watch(self, *, after_sequence: int = 0, launcher: bool = False) -> AsyncIterator[pb.WatchEventsResponse]:
        """Events until the run has ended."""
        return self._stub.WatchEvents(pb.WatchEventsRequest(after_sequence=after_sequence, launcher=launcher))

    async def stop(self, *, reason: str = "") -> pb.StopResponse:
        """Ends the run after the current step."""
        return await self._stub.Stop(pb.StopRequest(reason=reason), timeout=CALL_TIMEOUT_S)

    async def answers(self) -> bool:
        """Whether the coordinator's event loop runs (health, without a look at Redis); waits as long as the caller does."""
        check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            await check(health_pb2.HealthCheckRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


class Client:
    """The coordinator's API for scripts; a context manager. `credentials` are those of an operator, as
    `sluice.rpc.credentials.load_credentials(folder)` reads them."""

    def __init__(self, address: str, *, credentials: Credentials = NO_CREDENTIALS) -> None:
        self._channel = open_blocking_channel(address, credentials=credentials)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def status(self) -> pb.GetStatusResponse:
        """Where the run stands."""
        return self._stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_TIMEOUT_S)

    def watch(self, *, after_sequence: int = 0) -> Iterator[pb.WatchEventsResponse]:
        """Events until the run has ended."""
        return self._stub.WatchEvents(pb.WatchEventsRequest(after_sequence=after_sequence))

    def pause(self) -> pb.PauseResponse:
        """Stops admission; running groups finish."""
        return self._stub.Pause(pb.PauseRequest(), timeout=CALL_TIMEOUT_S)

    def resume(self) -> pb.ResumeResponse:
        """Undoes pause and drain."""
        return self._stub.Resume(pb.ResumeRequest(), timeout=CALL_TIMEOUT_S)

    def drain(self, *, timeout_s: float = LONG_CALL_TIMEOUT_S) -> pb.DrainResponse:
        """Stops admission and returns when no group is in flight."""
        return self._stub.Drain(pb.DrainRequest(timeout_s=timeout_s), timeout=timeout_s + CALL_TIMEOUT_S)

    def stop(self, *, reason: str = "") -> pb.StopResponse:
        """Ends the run after the current step."""
        return self._stub.Stop(pb.StopRequest(reason=reason), timeout=CALL_TIMEOUT_S)

    def scale(self, role: str, replicas: int) -> pb.ScaleResponse:
        """Wishes for `replicas` of "rollout" or "reward"."""
        return self._stub.Scale(pb.ScaleRequest(role=ROLES[role], replicas=replicas), timeout=CALL_TIMEOUT_S)

    def save_checkpoint(self) -> pb.SaveCheckpointResponse:
        """A checkpoint at the next step boundary."""
        return self._stub.SaveCheckpoint(pb.SaveCheckpointRequest(), timeout=LONG_CALL_TIMEOUT_S)

    def evaluate(self, *, prompts: int = 0, n: int = 0) -> pb.Evaluation:
        """Accuracy on held-out prompts under one version; 0 takes the configured numbers."""
        response = self._stub.Evaluate(pb.EvaluateRequest(prompts=prompts, n=n), timeout=LONG_CALL_TIMEOUT_S)
        return response.evaluation

    def rollback(self, to: int, *, preview: bool = False) -> pb.RollbackResponse:
        """Goes back to version `to`, that of a checkpoint; with `preview` only says what would be given up."""
        request = pb.RollbackRequest(to=to, preview=preview)
        return self._stub.Rollback(request, timeout=LONG_CALL_TIMEOUT_S)

    def ledger(self) -> pb.Ledger:
        """The conservation law, term by term."""
        return self._stub.GetLedger(pb.GetLedgerRequest(), timeout=CALL_TIMEOUT_S).ledger

    def group(self, group: str) -> pb.GetGroupResponse:
        """One group, by id or number in the order of admission: summary, ledger row, and its samples while kept."""
        return self._stub.GetGroup(pb.GetGroupRequest(group_id=group), timeout=CALL_TIMEOUT_S)

    def config(self) -> str:
        """The resolved configuration, YAML."""
        return self._stub.GetConfig(pb.GetConfigRequest(), timeout=CALL_TIMEOUT_S).yaml
