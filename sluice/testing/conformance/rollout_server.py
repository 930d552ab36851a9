"""A rollout server under check: requests, whole streams, and weights to push to it."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from sluice.clock import Clock
from sluice.rpc.arrays import pack_ids
from sluice.testing.conformance.suite import NotApplicable, Violation, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S
from sluice.v1 import common_pb2, rollout_pb2
from sluice.weights.snapshot import Snapshot

T = TypeVar("T")

PROMPT = (5, 6, 7, 8)
"""Token ids that every vocabulary has."""

_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutServer:
    """One server, which holds weights unless a check says otherwise."""

    channel: grpc.aio.Channel
    stub: Any
    clock: Clock
    snapshot: Snapshot | None
    """Weights to push; None: the checks use the weights that the server holds."""
    file_path: str
    """The path of the snapshot, for a receiver that reads files."""
    drain: bool
    """Whether the server may be drained in the end."""
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _prefix: str = field(default_factory=lambda: secrets.token_hex(4))

    async def info(self) -> rollout_pb2.RolloutServiceGetInfoResponse:
        """GetInfo."""
        return await self.stub.GetInfo(rollout_pb2.RolloutServiceGetInfoRequest(), timeout=CALL_TIMEOUT_S)

    def request(self, *, n: int = 8, max_tokens: int = 8, **changes: Any) -> rollout_pb2.GenerateRequest:
        """A request with a fresh request_id, at temperature 1; `changes` are fields to set otherwise."""
        fields: dict[str, Any] = {
            "request_id": f"conformance-{self._prefix}-{next(self._names)}",
            "prompt_token_ids": pack_ids([*PROMPT]),
            "samples": [rollout_pb2.SampleSpec(index=index, seed=100 + index) for index in range(n)],
            "sampling": common_pb2.SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=max_tokens),
        }
        return rollout_pb2.GenerateRequest(**(fields | changes))

    async def long_request(self) -> rollout_pb2.GenerateRequest:
        """A request that keeps the server busy for as long as the server's context allows."""
        info = await self.info()
        return self.request(n=max(1, min(info.capacity_samples, 64)), max_tokens=info.max_model_len - len(PROMPT))

    async def generate(
        self, request: rollout_pb2.GenerateRequest, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[common_pb2.Sample]:
        """The samples of a whole stream, in the order of arrival."""
        events = self.stub.Generate(request, timeout=timeout_s)
        return [event.sample async for event in events if event.WhichOneof("event") == "sample"]

    async def until_running(self, stream: asyncio.Task[Any]) -> None:
        """Returns when GetInfo shows running samples. Raises Violation when the stream ends before."""
        while not (await self.info()).running_samples:
            if stream.done():
                raise Violation("the stream had ended before GetInfo showed a running sample")
            await self.clock.sleep(_POLL_S)

    async def until_idle(self, *, within_s: float) -> None:
        """Returns when no sample runs. Raises Violation after `within_s`."""
        give_up = self.clock.now() + within_s
        while running := (await self.info()).running_samples:
            require(self.clock.now() < give_up, f"{running} samples still run {within_s:g} s later")
            await self.clock.sleep(_POLL_S)

    def pushed(self) -> Snapshot:
        """The weights to push. Raises NotApplicable when there are none."""
        if self.snapshot is None:
            raise NotApplicable("no weights to push: give the model's folder with --model")
        return self.snapshot


@contextlib.asynccontextmanager
async def running(call: Callable[[], Coroutine[Any, Any, T]]) -> AsyncIterator[asyncio.Task[T]]:
    """A call as a task that is cancelled in the end."""
    task = asyncio.create_task(call())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
