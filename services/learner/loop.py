"""The run as the learner lives it: get batch k, train, publish version k + 1, commit, now and then save.

Rank 0 leads and is the only one that knows of coordinator, lineage and publication; the others follow its commands.
Waits: the leader for its batch, at most one long poll at a time, unblocked by the coordinator or by a signal; the
followers for the leader, which speaks after every poll.
"""

import time

import structlog

from services.learner.batch import Batch
from services.learner.checkpoint import CheckpointState, TrainedBatch
from services.learner.lineage import LineageBook
from services.learner.ports import Coordinator, Front
from services.learner.publish import renamed
from services.learner.ranks import Command
from services.learner.worker import Worker
from sluice.weights.manifest import PolicyVersion
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)


def follow(worker: Worker) -> None:
    """Does what the leader says until it says stop."""
    while (command := worker.ranks.command()) is not Command.STOP:
        if command is Command.TRAIN:
            worker.train(None)
            worker.gather(PolicyVersion(lineage="", number=worker.step))
        elif command is Command.CHECKPOINT:
            worker.save(CheckpointState(step=worker.step, lineage=""))


class Leader:
    """Rank 0. Starts from the version that `state` restored, whose snapshot is already published."""

    def __init__(
        self,
        *,
        worker: Worker,
        coordinator: Coordinator,
        front: Front,
        lineages: LineageBook,
        state: CheckpointState,
        snapshot: Snapshot,
        checkpoint_every_steps: int,
    ) -> None:
        self._worker, self._coordinator, self._front = worker, coordinator, front
        self._lineages, self._lineage = lineages, state.lineage
        self._every = checkpoint_every_steps
        self._waited_s = 0.0
        self._trained: list[TrainedBatch] = []
        self._parted = False
        self.snapshot = snapshot
        """The newest version."""

    def run(self) -> bool:
        """Trains until the run has ended (True) or the process is asked to stop (False); both leave a checkpoint."""
        while isinstance(found := self._next_batch(), Batch):
            self._step(found)
            if self._worker.step % self._every == 0:
                self._save()
        self._save()
        self._worker.ranks.command(Command.STOP)
        return found

    def _next_batch(self) -> Batch | bool:
        """The next batch, or whether the run has ended. Waiting is a step boundary: wished checkpoints are saved here."""
        started, reason = time.perf_counter(), ""
        while not self._front.stopping:
            if self._front.checkpoint_wanted:
                self._save()
            found = self._coordinator.batch(self._worker.step)
            if isinstance(found, Batch):
                self._waited_s = time.perf_counter() - started
                return found
            if found.ended:
                return True
            if found.reason not in ("", reason):
                reason = found.reason
                log.info("waiting_for_batch", step=self._worker.step, reason=reason)
            self._worker.ranks.command(Command.IDLE)
        return False

    def _step(self, batch: Batch) -> None:
        self._worker.ranks.command(Command.TRAIN)
        metrics = self._worker.train(batch)
        started = time.perf_counter()
        snapshot = self._worker.gather(self._version)
        assert snapshot is not None
        self._publish(snapshot)
        metrics |= {"learner/wait_s": self._waited_s, "learner/publish_s": time.perf_counter() - started}
        self._commit(batch, metrics)
        ids = [group.group_id for group in batch.groups]
        self._trained.append(TrainedBatch(step=batch.step, digest=batch.digest, group_ids=ids))

    def _commit(self, batch: Batch, metrics: dict[str, float]) -> None:
        """Books the step. A digest other than the recorded one means that this replay is not exact: a new lineage."""
        digest = self.snapshot.manifest.digest
        recorded = self._coordinator.commit_step(batch, version=self._version, weights_digest=digest, metrics=metrics)
        if recorded in ("", digest) or self._parted:
            return
        self._parted = True  # every later replayed step differs too, and is already told apart
        former, self._lineage = self._lineage, self._lineages.mint()
        log.warning("lineage_minted", step=batch.step, former=former, lineage=self._lineage, digest=digest[:12])
        self._publish(renamed(self.snapshot, self._version))
        self._coordinator.commit_step(batch, version=self._version, weights_digest=digest, metrics=metrics)

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._front.publish(snapshot)

    def _save(self) -> None:
        """Saves what is held unless it is saved already; version 0 is `model.path` itself."""
        if self._worker.step > 0 and self._worker.saved is None:
            self._worker.ranks.command(Command.CHECKPOINT)
            self._worker.save(CheckpointState(step=self._worker.step, lineage=self._lineage, trained=self._trained))
            if self._worker.saved is not None:
                self._trained = []
                self._coordinator.commit_checkpoint(self._version, self._worker.saved)
        self._front.checkpoint_saved(self._version, self._worker.saved)

    @property
    def _version(self) -> PolicyVersion:
        return PolicyVersion(lineage=self._lineage, number=self._worker.step)
