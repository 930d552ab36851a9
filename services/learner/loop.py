"""The learner's loop: get batch k, train, gather version k + 1, and every few steps save a checkpoint.

Rank 0 leads; only rank 0 knows of coordinator, lineage and publication; the other ranks follow rank 0's commands. Digesting,
publishing and booking a version go on beside the next step (publishing.py).

 who waits      for what                                                  unblocked by
 the leader     batch k, one long poll at a time                          the coordinator, a signal, a completed checkpoint
 the leader     a checkpoint, before the next checkpoint or the leader's  the thread that writes the checkpoint, or
                end                                                       WRITE_LIMIT_S
 the leader     the former version, before the next version or a          the thread that makes the version known
                checkpoint is gathered
 the leader     the booking of a checkpoint, a call at a time             the coordinator, when its disk has room
 the followers  the leader's next command                                 the leader, which sends a command after every poll,
                                                                          and every MEANWHILE_S of a call that lasts
"""

import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Protocol

import structlog

from services.learner.batches.batch import Batch
from services.learner.checkpoint.training_record import TrainingRecord
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.checkpoint.writer import WRITE_LIMIT_S, still_writing
from services.learner.distributed.ranks import Command
from services.learner.ports import Coordinator, Publisher
from services.learner.publishing import Publishing, Sealable, booked
from services.learner.step_trace import TRAINING, StepTrace
from sluice.policy_version import PolicyVersion
from sluice.run_dir.token_figures import TokenFigures
from sluice.telemetry.traces.tracer import OFF, Tracer
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)

SETTLE_POLL_S = 20.0
"""How often a leader that waits for the writing of a checkpoint, or for a version, sends the other ranks a command."""

LAST_WORDS_S = 5.0
"""How long a leader that fails lets the version before its failure be booked; chosen: a booking takes some milliseconds."""


class RankWork(Protocol):
    """One rank's part of the work (rank_worker.py). Every method is collective: all ranks call it together."""

    @property
    def step(self) -> int:
        """The number of the current version."""
        ...

    @property
    def restored(self) -> Path | None:
        """The checkpoint from which the rank started."""
        ...

    @property
    def publish_phases_ms(self) -> dict[str, float]:
        """How long the phases of the newest `pack` took."""
        ...

    def command(self, command: Command = ..., /) -> Command:
        """Shares the leader's command; returns it."""
        ...

    def train(self, batch: Batch | None, /) -> dict[str, float]:
        """One step on the leader's batch; its metrics."""
        ...

    @property
    def example(self) -> TokenFigures | None:
        """The tokens of one group of the newest step."""
        ...

    def pack(self, version: PolicyVersion, /) -> Sealable | None:
        """The current weights as `version`, on the leader; what is left to do needs no other rank."""
        ...

    def save(self, state: CheckpointState, /) -> "Future[Path | None]":
        """Begins a checkpoint. The future has the path when the checkpoint is complete, None when the disk refused it."""
        ...


def follow(worker: RankWork) -> bool:
    """Follows the leader's commands until the run has ended (True) or the learner stops before its end (False)."""
    while (command := worker.command()) not in (Command.STOP, Command.LEAVE):
        if command is Command.TRAIN:
            worker.train(None)
        elif command is Command.PUBLISH:
            worker.pack(PolicyVersion(lineage="", number=worker.step))
        elif command is Command.CHECKPOINT:
            worker.save(CheckpointState(step=worker.step, lineage=""))
    return command is Command.STOP


class Leader:
    """Rank 0. Starts from the version of `worker`, which `publishing` has as its newest and which is already published."""

    def __init__(
        self,
        *,
        worker: RankWork,
        coordinator: Coordinator,
        publisher: Publisher,
        publishing: Publishing,
        record: TrainingRecord,
        checkpoint_every_steps: int,
        tracer: Tracer = OFF,
    ) -> None:
        self._worker, self._coordinator, self._publisher = worker, coordinator, publisher
        self._tracer = tracer
        self._every = checkpoint_every_steps
        self._waited_s = 0.0
        self._record, self._publishing = record, publishing
        self._saved = (self._version, worker.restored)
        """The newest complete checkpoint; version 0 is `model.path` itself."""
        self._saving: tuple[PolicyVersion, Future[Path | None]] | None = None
        """The version whose checkpoint is being written, and the future of its path."""

    @property
    def snapshot(self) -> Snapshot:
        """The newest version, once `run` has returned."""
        return self._publishing.snapshot

    def run(self) -> bool:
        """Trains until the run has ended (True) or the process is asked to stop (False); both leave a checkpoint."""
        try:
            while isinstance(found := self._next_batch(), Batch):
                self._step(found)
                if self._worker.step % self._every == 0:
                    self._save()
            self._save()
            self._settle()
        except BaseException:
            self._publishing.give_time(LAST_WORDS_S)
            raise
        self._worker.command(Command.STOP if found else Command.LEAVE)
        return found

    def _next_batch(self) -> Batch | bool:
        """The next batch, or whether the run has ended. Waiting is a step boundary: requested checkpoints begin here."""
        started, reason = time.perf_counter(), ""
        while not self._publisher.stopping:
            self._publishing.done()
            self._book_when_complete()
            if self._publisher.checkpoint_wanted:
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
            self._worker.command(Command.IDLE)
        return False

    def _step(self, batch: Batch) -> None:
        trace = StepTrace(tracer=self._tracer, batch=batch, started_s=time.time() - self._waited_s)
        trace.waited()
        self._worker.command(Command.TRAIN)
        with trace.phase(TRAINING):
            metrics = self._worker.train(batch)
        started = time.perf_counter()
        self._until_known()
        self._worker.command(Command.PUBLISH)
        with trace.phase("sluice.learner.gather"):
            packed = self._worker.pack(self._version)
        assert packed is not None
        metrics |= {"learner/wait_s": self._waited_s, "learner/publish_s": time.perf_counter() - started}
        metrics |= {f"learner/{phase}_ms": taken for phase, taken in self._worker.publish_phases_ms.items()}
        self._publishing.begin(batch, packed, metrics, trace, self._worker.example)

    def _until_known(self) -> None:
        """Waits until the newest version is published and booked, and sends IDLE meanwhile."""
        while not self._publishing.done(SETTLE_POLL_S):
            self._worker.command(Command.IDLE)

    def _save(self) -> None:
        """Saves the current version unless it is saved or being saved already. Waits until the version is booked, and for the
        write of a former version."""
        self._until_known()
        version = self._version
        if self._saving is not None and self._saving[0] != version:
            self._settle()
        self._publisher.checkpoint_begun()
        if version.number == 0 or self._saved[0] == version:
            self._publisher.checkpoint_saved(*self._saved)
        elif self._saving is None:
            self._worker.command(Command.CHECKPOINT)
            state = CheckpointState(step=version.number, lineage=version.lineage, trained=self._record.unsaved)
            writing = self._worker.save(state)
            self._saving = (version, writing)
            self._book_when_complete()  # without learner.async_checkpoint the checkpoint is complete here
            writing.add_done_callback(lambda _: self._coordinator.wake())

    def _settle(self) -> None:
        """Waits until no checkpoint is being written, and sends IDLE meanwhile. Raises Expired after WRITE_LIMIT_S."""
        deadline = time.perf_counter() + WRITE_LIMIT_S
        while self._saving is not None:
            wait([self._saving[1]], timeout=SETTLE_POLL_S)
            self._book_when_complete()
            if self._saving is not None:
                self._worker.command(Command.IDLE)
                if time.perf_counter() > deadline:
                    raise still_writing(f"checkpoint of {self._saving[0]}")

    def _book_when_complete(self) -> None:
        """Commits a checkpoint that has reached the disk. After a failed write the former checkpoint stays the newest."""
        if self._saving is None or not self._saving[1].done():
            return
        version, path = self._saving[0], self._saving[1].result()
        self._saving = None
        if path is not None:
            self._saved = (version, path)
            self._record.saved(version.number)
            self._book(version, path)
        self._publisher.checkpoint_saved(version, path)

    def _book(self, version: PolicyVersion, path: Path) -> None:
        booked(
            lambda: self._coordinator.commit_checkpoint(version, path),
            step=version.number,
            meanwhile=lambda: self._worker.command(Command.IDLE),
        )

    @property
    def _version(self) -> PolicyVersion:
        """The current version; its lineage is settled when no version is on its way."""
        return PolicyVersion(lineage=self._publishing.lineage, number=self._worker.step)
