"""The coordinator as the learner's loop sees it: gRPC calls that outlast a restart of either side.

Runs in the control thread's event loop. Waits: for the coordinator, at most `Registration.patience_s` in a row. A call
refused by a fence is repeated when this process has registered anew meanwhile (a restarted coordinator hands out new
fences); otherwise another learner has taken over and `Fenced` ends this one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from services.learner.ports import NoBatch
from sluice.errors import Fenced
from sluice.lineage import Rollback
from sluice.policy_version import PolicyVersion
from sluice.rpc.policy_versions import version_to_proto
from sluice.rpc.registration import CALL_TIMEOUT_S, Registration
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb

T = TypeVar("T")

POLL_S = 20.0
"""One long poll for a batch; the other ranks hear of the leader after each."""

TRANSFER_S = 300.0
"""Limit of receiving a batch once it is there."""

_RENEWAL_S = 5.0
"""How long a fenced call waits for a registration that may be under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawBatch:
    """A batch as it came."""

    header: pb.BatchHeader
    groups: list[common_pb2.Group]


@dataclass(kw_only=True, slots=True)
class CoordinatorLink:
    """Calls one coordinator. `wake` ends the wait for a batch early."""

    registration: Registration
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    _registered: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.registration.on_registered = self._announce

    async def run_facts(self) -> tuple[str, str, Sequence[Rollback]]:
        """The run's configuration as YAML, its directory and its rollbacks, oldest first."""
        config = await self.registration.fetch_config()
        status = await self.registration.patiently(
            lambda: self.registration.stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_TIMEOUT_S), "GetStatus"
        )
        rollbacks = [Rollback(to=rollback.to, lineage=rollback.lineage) for rollback in status.rollbacks]
        return config, status.run_dir, rollbacks

    async def batch(self, step: int) -> RawBatch | NoBatch:
        """Batch `step`, or none after POLL_S or a wake."""
        getting = asyncio.ensure_future(self._fenced(lambda fence: self._read_batch(step, fence), "GetBatch"))
        waking = asyncio.ensure_future(self.wake.wait())
        try:
            await asyncio.wait({getting, waking}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return NoBatch(reason="", ended=False)
        finally:
            self.wake.clear()
            for task in (getting, waking):
                task.cancel()
            await asyncio.gather(getting, waking, return_exceptions=True)

    async def commit_step(
        self,
        step: int,
        *,
        version: PolicyVersion,
        weights_digest: str,
        batch_digest: str,
        metrics: Mapping[str, float],
    ) -> str:
        """CommitStep; returns the recorded digest."""
        response = await self._fenced(
            lambda fence: self.registration.stub.CommitStep(
                pb.CommitStepRequest(
                    step=step,
                    version=version_to_proto(version),
                    weights_digest=weights_digest,
                    batch_digest=batch_digest,
                    metrics=metrics,
                    fence=fence,
                ),
                timeout=CALL_TIMEOUT_S,
            ),
            "CommitStep",
        )
        return response.recorded_digest

    async def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """CommitCheckpoint."""
        await self._fenced(
            lambda fence: self.registration.stub.CommitCheckpoint(
                pb.CommitCheckpointRequest(version=version_to_proto(version), path=str(path), fence=fence),
                timeout=CALL_TIMEOUT_S,
            ),
            "CommitCheckpoint",
        )

    async def _read_batch(self, step: int, fence: int) -> RawBatch | NoBatch:
        request = pb.GetBatchRequest(step=step, wait_s=POLL_S, fence=fence)
        header, groups = pb.BatchHeader(), []
        async for response in self.registration.stub.GetBatch(request, timeout=POLL_S + TRANSFER_S):
            match response.WhichOneof("part"):
                case "not_ready":
                    return NoBatch(reason=response.not_ready.reason, ended=response.not_ready.ended)
                case "header":
                    header = response.header
                case "group":
                    groups.append(response.group)
        return RawBatch(header=header, groups=groups)

    async def _fenced(self, call: Callable[[int], Awaitable[T]], what: str) -> T:
        while True:
            fence = self._fence
            try:
                return await self.registration.patiently(lambda: call(self._fence), what)
            except Fenced:
                if not await self._renewed(fence):
                    raise

    async def _renewed(self, fence: int) -> bool:
        """Whether a registration has given, or gives soon, another fence."""
        try:
            async with asyncio.timeout(_RENEWAL_S), self._registered:
                await self._registered.wait_for(lambda: self._fence != fence)
        except TimeoutError:
            return False
        return True

    async def _announce(self, _: pb.RegisterResponse) -> None:
        async with self._registered:
            self._registered.notify_all()

    @property
    def _fence(self) -> int:
        assert self.registration.registered is not None
        return self.registration.registered.fence
