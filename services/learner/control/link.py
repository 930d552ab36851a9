"""The learner loop's calls to the coordinator: blocking, and outlasting a restart of either side.

The calls themselves run in the control thread's event loop. Waits: for the coordinator, at most `Registration.patience_s`
in a row. A call refused by a fence is repeated when this process has registered anew meanwhile (a restarted coordinator
hands out new fences); otherwise another learner has taken over and `Fenced` ends this learner.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import structlog

from services.learner.batches.batch import Batch
from services.learner.control.thread import ControlThread
from services.learner.control.wire import batch_from_wire, figures_to_wire
from services.learner.ports import NoBatch
from sluice.errors import Fenced, NotReady
from sluice.lineage import Rollback
from sluice.policy_version import PolicyVersion
from sluice.rpc.policy_versions import version_to_proto
from sluice.rpc.registration import CALL_TIMEOUT_S, Registration
from sluice.rpc.requests import as_line
from sluice.run_dir.token_figures import TokenFigures
from sluice.v1 import coordinator_pb2 as pb

log = structlog.get_logger(__name__)

MOST_FIGURES: Final = 1 << 22
"""Tokens of the example that a commit carries, 16 MiB: a larger group has none, because a request ends at 64 MiB."""

T = TypeVar("T")

POLL_S = 20.0
"""Limit of one long poll for a batch; the leader sends the other ranks a command after each poll."""

TRANSFER_S = 300.0
"""Limit of receiving a batch that is ready."""

_RENEWAL_S = 5.0
"""How long a fenced call waits for a registration that may be under way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RawBatch:
    """A batch in the received form."""

    header: pb.BatchHeader
    payloads: list[bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Refused:
    """A batch that cannot be trained, by its digest, and the reason; empty for none."""

    digest: str = ""
    why: str = ""


_NOTHING = _Refused()


class CoordinatorLink:
    """`Coordinator` of ports.py, and the learner's first question, before the model is loaded."""

    def __init__(
        self, thread: ControlThread, registration: Registration, *, show: Callable[[Mapping[str, float]], None]
    ) -> None:
        """`show` is called with the metrics of every step before the step is committed."""
        self._thread, self._registration, self._show = thread, registration, show
        self._wake, self._registered = asyncio.Event(), asyncio.Condition()
        registration.on_registered = self._announce
        self.meanwhile: Callable[[], object] | None = None
        """Called again and again while a call of the training thread lasts: the other ranks wait for a command, and no
        collective of torch waits as long as the repair of a long run may take."""
        self.vocabulary = 0
        """The number of the model's token ids; to be set before `batch`."""

    def run_facts(self) -> tuple[str, str, Sequence[Rollback]]:
        """The run's configuration as YAML, its directory and its rollbacks, oldest first; waits for the coordinator."""
        return self._thread.call(self._run_facts())

    def batch(self, step: int) -> Batch | NoBatch:
        """Coordinator.batch. A batch that cannot be trained is refused, so that another one takes its place.

        Raises TransferError for a damaged batch, NotReady when the coordinator insists on one that cannot be trained.
        """
        refused = _NOTHING
        while isinstance(found := self._thread.call(self._poll(step, refused), meanwhile=self.meanwhile), _RawBatch):
            if found.header.digest == refused.digest:
                raise NotReady(f"batch {step} was committed before, and cannot be trained again: {refused.why}")
            try:
                return batch_from_wire(found.header, found.payloads, vocabulary=self.vocabulary)
            except ValueError as error:
                refused = _Refused(digest=found.header.digest, why=as_line(str(error)))
                log.warning("batch_refused", step=step, digest=refused.digest[:12], reason=refused.why)
        return found

    def commit_step(
        self,
        batch: Batch,
        *,
        version: PolicyVersion,
        weights_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None,
    ) -> str:
        """Coordinator.commit_step."""
        self._show(metrics)

        def commit(fence: int) -> Awaitable[pb.CommitStepResponse]:
            request = pb.CommitStepRequest(
                step=batch.step,
                version=version_to_proto(version),
                weights_digest=weights_digest,
                batch_digest=batch.digest,
                metrics=metrics,
                fence=fence,
                example=None if example is None or len(example.entropies) > MOST_FIGURES else figures_to_wire(example),
            )
            return self._registration.stub.CommitStep(request, timeout=CALL_TIMEOUT_S)

        return self._thread.call(self._fenced(commit, "CommitStep")).recorded_digest

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """Coordinator.commit_checkpoint."""

        def commit(fence: int) -> Awaitable[pb.CommitCheckpointResponse]:
            request = pb.CommitCheckpointRequest(version=version_to_proto(version), path=str(path), fence=fence)
            return self._registration.stub.CommitCheckpoint(request, timeout=CALL_TIMEOUT_S)

        self._thread.call(self._fenced(commit, "CommitCheckpoint"), meanwhile=self.meanwhile)

    def wake(self) -> None:
        """Ends a wait for a batch. Safe from any thread and in a signal handler."""
        self._thread.soon(self._wake.set)

    async def _run_facts(self) -> tuple[str, str, Sequence[Rollback]]:
        config = await self._registration.fetch_config()
        status = await self._registration.patiently(
            lambda: self._registration.stub.GetStatus(pb.GetStatusRequest(), timeout=CALL_TIMEOUT_S), "GetStatus"
        )
        rollbacks = [Rollback(to=rollback.to, lineage=rollback.lineage) for rollback in status.rollbacks]
        return config, status.run_dir, rollbacks

    async def _poll(self, step: int, refused: _Refused) -> _RawBatch | NoBatch:
        """Batch `step`, or NoBatch after POLL_S or after `wake`."""
        getting = asyncio.ensure_future(self._fenced(lambda fence: self._read_batch(step, fence, refused), "GetBatch"))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({getting, waking}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            return NoBatch(reason="", ended=False)
        finally:
            self._wake.clear()
            for task in (getting, waking):
                task.cancel()
            await asyncio.gather(getting, waking, return_exceptions=True)

    async def _read_batch(self, step: int, fence: int, refused: _Refused) -> _RawBatch | NoBatch:
        request = pb.GetBatchRequest(
            step=step,
            wait_s=POLL_S,
            fence=fence,
            as_stored=True,
            unusable_digest=refused.digest,
            unusable_why=refused.why,
        )
        header, payloads = pb.BatchHeader(), []
        async for response in self._registration.stub.GetBatch(request, timeout=POLL_S + TRANSFER_S):
            match response.WhichOneof("part"):
                case "not_ready":
                    return NoBatch(reason=response.not_ready.reason, ended=response.not_ready.ended)
                case "header":
                    header = response.header
                case "stored_group":
                    payloads.append(response.stored_group)
                case "group":  # from a coordinator of an earlier version, which does not know `as_stored`
                    raise NotReady(
                        "GetBatch: the coordinator is of an earlier version; run one version of sluice everywhere"
                    )
        return _RawBatch(header=header, payloads=payloads)

    async def _fenced(self, call: Callable[[int], Awaitable[T]], what: str) -> T:
        while True:
            fence = self._fence
            try:
                return await self._registration.patiently(lambda: call(self._fence), what)
            except Fenced:
                if not await self._renewed(fence):
                    raise

    async def _renewed(self, fence: int) -> bool:
        """Whether a registration has given another fence, or gives one within _RENEWAL_S."""
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
        assert self._registration.registered is not None
        return self._registration.registered.fence
