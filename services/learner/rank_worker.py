"""One rank's part of a run. Every method is collective: all ranks call a method together; the leader's arguments count."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from services.learner.batches.batch import Batch
from services.learner.batches.batch_flat import write_batch
from services.learner.batches.batch_sharing import share_batch
from services.learner.checkpoint import training_state as checkpoint
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.checkpoint.writer import WRITE_LIMIT_S, CheckpointWriter
from services.learner.distributed.ranks import Command, Ranks
from services.learner.distributed.step_watch import StepWatch
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.snapshot.pack import Packed, SnapshotPacker
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.lineage import FIRST, Rollback, lineage_from
from sluice.policy_version import PolicyVersion
from sluice.run_dir.private import make_private_folder
from sluice.run_dir.token_figures import TokenFigures
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)

KEPT_NONFINITE = 16
"""Batches with a skipped update that are kept, the newest ones: a batch may have a gigabyte."""


class Worker:
    """Trains, gathers and saves."""

    def __init__(self, *, config: Config, ranks: Ranks, run_dir: Path) -> None:
        self.ranks = ranks
        self._config = config
        self._checkpoints = run_dir / "checkpoints"
        self._watch = StepWatch(limit_s=config.learner.step_timeout_s, rank=ranks.rank)
        policy = load_policy(config, ranks)
        self._trainer = Trainer(
            policy=policy,
            optimizer=make_optimizer(policy, config),
            config=config,
            ranks=ranks,
            on_skip=partial(_keep, ranks, run_dir / "nonfinite"),
        )
        self._packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
        self._writer = CheckpointWriter(
            directory=self._checkpoints,
            keep=config.learner.keep_checkpoints,
            background=config.learner.async_checkpoint,
            ranks=ranks,
        )
        self.restored: Path | None = None
        """The checkpoint from which this rank started; None: `model.path`."""

    @property
    def step(self) -> int:
        """Steps completed, which is the number of the current version."""
        return self._trainer.step

    def restore(self, rollbacks: Sequence[Rollback] = ()) -> CheckpointState:
        """Loads the checkpoint that `learner.resume` asks for; without a checkpoint keeps version 0 of the first lineage.

        In a run with `rollbacks` the lineage is at least the lineage of the last rollback.
        """
        chosen = None
        if self.ranks.leads:
            resume = self._config.learner.resume
            chosen = checkpoint.choose(resume, directory=self._checkpoints, rollbacks=rollbacks)
        (path,) = self.ranks.share_texts([str(chosen or "")])
        state = CheckpointState(step=0, lineage=FIRST)
        if path:
            self.restored = Path(path)
            state = checkpoint.load(self._trainer, self.restored)
        return replace(state, lineage=lineage_from(state.lineage, rollbacks))

    def command(self, command: Command = Command.IDLE) -> Command:
        """Ranks.command. The leader watches the call, because gloo waits for a frozen follower that takes no command."""
        if not self.ranks.leads:
            return self.ranks.command(command)
        with self._watch.over(f"command {command.name} before step", self.step):
            return self.ranks.command(command)

    def allow_sharing(self, allowed: bool) -> None:
        """Trainer.allow_sharing."""
        self._trainer.allow_sharing(allowed)

    def train(self, batch: Batch | None) -> dict[str, float]:
        """Trains one step on the leader's batch."""
        with self._watch.over("training of step", self.step):
            return self._trainer.train(share_batch(self.ranks, batch))

    @property
    def example(self) -> TokenFigures | None:
        """Trainer.example."""
        return self._trainer.example

    def gather(self, version: PolicyVersion) -> Snapshot | None:
        """The current weights as a snapshot of `version`, on the leader."""
        packed = self.pack(version)
        return packed.seal() if packed is not None else None

    def pack(self, version: PolicyVersion) -> Packed | None:
        """SnapshotPacker.pack."""
        with self._watch.over("gathering of version", version.number):
            return self._packer.pack(version)

    @property
    def adapters(self) -> Snapshot | None:
        """The LoRA adapters of the newest gather, on the leader; None without LoRA."""
        return self._packer.adapters

    @property
    def publish_phases_ms(self) -> dict[str, float]:
        """How long the phases of the newest gather took on this rank, without the digest."""
        return self._packer.phases_ms

    def save(self, state: CheckpointState) -> "Future[Path | None]":
        """CheckpointWriter.begin."""
        # Without learner.async_checkpoint this call also waits for the disk.
        more_s = 0.0 if self._config.learner.async_checkpoint else WRITE_LIMIT_S
        with self._watch.over("checkpoint of version", state.step, more_s=more_s):
            return self._writer.begin(self._trainer, state)

    def close(self) -> None:
        """CheckpointWriter.close, which first waits for a checkpoint under way."""
        self._writer.close()


def _keep(ranks: Ranks, folder: Path, batch: Batch) -> None:
    """Writes a batch with a skipped update to a file for people to look at (`batch_flat.read_batch`); the oldest may go."""
    if not ranks.leads:
        return
    path = folder / f"step-{batch.step}.npz"
    try:
        make_private_folder(folder)
        write_batch(batch, path)
        for former in sorted(folder.glob("step-*.npz"), key=lambda kept: kept.stat().st_mtime_ns)[:-KEPT_NONFINITE]:
            former.unlink()
    except OSError as error:  # a full disk must not end a run that the skipped update did not end
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)  # a part of it
        log.error("nonfinite_batch_not_kept", path=str(path), error=str(error))
        return
    log.warning("nonfinite_batch_kept", path=str(path))
