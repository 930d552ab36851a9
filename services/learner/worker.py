"""One rank's part of a run. Every method is collective: all ranks call it together, only the leader's arguments count."""

from pathlib import Path

from services.learner import checkpoint, lineage
from services.learner.batch import Batch
from services.learner.batch_sharing import share_batch
from services.learner.checkpoint import CheckpointState
from services.learner.model import load_policy, make_optimizer
from services.learner.publish import Publisher
from services.learner.ranks import Ranks
from services.learner.train_step import Trainer
from sluice.config.schema import Config
from sluice.weights.manifest import PolicyVersion
from sluice.weights.snapshot import Snapshot


class Worker:
    """Trains, gathers and saves."""

    def __init__(self, *, config: Config, ranks: Ranks, run_dir: Path) -> None:
        self.ranks = ranks
        self._config = config
        self._checkpoints = run_dir / "checkpoints"
        policy = load_policy(config, ranks)
        self._trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
        self._publisher = Publisher(policy=policy, config=config, ranks=ranks)
        self.saved: Path | None = None
        """The checkpoint of exactly what is held now, if there is one."""

    @property
    def step(self) -> int:
        """Steps completed: the number of the version held."""
        return self._trainer.step

    def restore(self) -> CheckpointState:
        """What `learner.resume` asks for; version 0 of the first lineage when there is nothing to resume from."""
        chosen = (
            checkpoint.choose(self._config.learner.resume, directory=self._checkpoints) if self.ranks.leads else None
        )
        (path,) = self.ranks.share_texts([str(chosen or "")])
        if not path:
            return CheckpointState(step=0, lineage=lineage.FIRST)
        self.saved = Path(path)
        return checkpoint.load(self._trainer, self.saved)

    def train(self, batch: Batch | None) -> dict[str, float]:
        """Trains one step on the leader's batch."""
        self.saved = None
        return self._trainer.train(share_batch(self.ranks, batch))

    def gather(self, version: PolicyVersion) -> Snapshot | None:
        """The weights held, as `version`, on the leader."""
        return self._publisher.gather(version)

    def save(self, state: CheckpointState) -> None:
        """Saves a checkpoint; `saved` stays None when the disk refuses it."""
        self.saved = checkpoint.save(
            self._trainer,
            state,
            directory=self._checkpoints,
            keep=self._config.learner.keep_checkpoints,
            ranks=self.ranks,
        )
