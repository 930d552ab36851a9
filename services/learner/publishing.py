"""Makes versions known in a thread of their own, while the next step trains: digest, record, publication, booking, export.

The order within one version is fixed, and versions follow each other, so a process that is killed at any moment leaves what a
learner without this thread would leave: a version that nobody can see, or one that the record states; a step that is
booked, or one that is trained again from its checkpoint. Booking needs the digest, so booking is in this thread too. The next
batch needs neither: with `coordinator.max_staleness` 0 no next batch is ready before the version is booked and pushed.

 who waits            for what                                            unblocked by
 this thread          the booking of a step, a call at a time             the coordinator, when its disk has room
 the training thread  this thread: before the next version is gathered,   this thread's end
                      before a checkpoint, before the learner's end
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Protocol, TypeVar

import structlog

from services.learner.batches.batch import Batch
from services.learner.checkpoint.background import in_background
from services.learner.checkpoint.training_record import TrainedBatch, TrainingRecord
from services.learner.ports import Coordinator, Publisher
from services.learner.snapshot.pack import renamed
from services.learner.step_trace import StepTrace
from sluice.errors import DiskFull
from sluice.lineage import LineageBook
from sluice.policy_version import PolicyVersion
from sluice.run_dir.full_disk import DiskWaits
from sluice.run_dir.token_figures import TokenFigures
from sluice.weights.snapshot import Snapshot

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Sealable(Protocol):
    """A version's bytes, complete and not digested (snapshot/pack.py)."""

    def seal(self) -> Snapshot: ...


class Publishing:
    """One version at a time. `lineage` and `snapshot` are those of the newest version when nothing is under way."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        publisher: Publisher,
        lineages: LineageBook,
        record: TrainingRecord,
        lineage: str,
        snapshot: Snapshot,
        export: Callable[[Snapshot], None],
        disk: DiskWaits,
    ) -> None:
        self._coordinator, self._publisher = coordinator, publisher
        self._lineages, self._record = lineages, record
        self._export, self._disk = export, disk
        self._under_way: Future[None] | None = None
        self._parted = False
        self._example: TokenFigures | None = None
        self.lineage = lineage
        self.snapshot = snapshot

    def begin(
        self,
        batch: Batch,
        packed: Sealable,
        metrics: dict[str, float],
        trace: StepTrace,
        example: TokenFigures | None,
    ) -> None:
        """Begins with the version that `batch` has made; nothing may be under way. A failure ends a wait for a batch."""
        assert self._under_way is None
        self._example = example
        self._under_way = in_background("publish", self._make_known, batch, packed, metrics, trace)
        self._under_way.add_done_callback(lambda done: self._coordinator.wake() if done.exception() else None)

    def done(self, timeout_s: float = 0.0) -> bool:
        """Waits at most so long; whether nothing is under way. Raises what the version failed with."""
        if self._under_way is None:
            return True
        if not wait([self._under_way], timeout=timeout_s).done:
            return False
        finished, self._under_way = self._under_way, None
        finished.result()
        return True

    def give_time(self, timeout_s: float) -> None:
        """Lets a version that is under way come to its end when the learner fails; its own failure is no news then."""
        if self._under_way is not None:
            wait([self._under_way], timeout=timeout_s)

    def _make_known(self, batch: Batch, packed: Sealable, metrics: dict[str, float], trace: StepTrace) -> None:
        started = time.perf_counter()
        with trace.phase("sluice.learner.publish"):
            snapshot = packed.seal()
            self._record.trained(self._trained(batch, snapshot))  # before anybody can see the new version
            self._publish(snapshot)
        metrics["learner/digest_ms"] = 1e3 * (time.perf_counter() - started)
        with trace.phase("sluice.learner.commit"):
            self._commit(batch, metrics)
        trace.end(version=snapshot.manifest.version.number)
        self._record.committed(self.lineage)
        self._export(self.snapshot)

    def _trained(self, batch: Batch, snapshot: Snapshot) -> TrainedBatch:
        return TrainedBatch(
            step=batch.step,
            digest=batch.digest,
            group_ids=[group.group_id for group in batch.groups],
            lineage=self.lineage,
            weights_digest=snapshot.manifest.digest,
            committed=False,
        )

    def _commit(self, batch: Batch, metrics: dict[str, float]) -> None:
        """Books the step. A replayed step whose digest differs from the recorded digest begins a new lineage."""
        digest = self.snapshot.manifest.digest
        recorded = booked(lambda: self._commit_step(batch, metrics), step=batch.step)
        if recorded in ("", digest) or self._parted:
            return
        self._parted = True  # later replayed steps differ too, and the new lineage marks them already
        former, self.lineage = self.lineage, self._disk.write_blocking(self._lineages.mint)
        log.warning("lineage_minted", step=batch.step, former=former, lineage=self.lineage, digest=digest[:12])
        number = self.snapshot.manifest.version.number
        self._publish(renamed(self.snapshot, PolicyVersion(lineage=self.lineage, number=number)))
        booked(lambda: self._commit_step(batch, metrics), step=batch.step)

    def _commit_step(self, batch: Batch, metrics: dict[str, float]) -> str:
        manifest = self.snapshot.manifest
        return self._coordinator.commit_step(
            batch,
            version=manifest.version,
            weights_digest=manifest.digest,
            metrics=metrics,
            example=self._example,
        )

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._publisher.publish(snapshot)


def booked(call: Callable[[], T], *, step: int, meanwhile: Callable[[], object] = lambda: None) -> T:
    """The answer to `call`, which is made again as long as the answer is that the coordinator waits for room on its
    disk; such an answer takes some seconds. `meanwhile` is called between two calls.
    """
    told = False
    while True:
        try:
            return call()
        except DiskFull as full:
            if not told:
                log.warning("waiting_for_the_coordinator", step=step, reason=str(full))
            told = True
            meanwhile()
