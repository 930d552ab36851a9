"""Saving and restoring the training state with torch.distributed.checkpoint: any number of ranks reads what any wrote.

`RUN/checkpoints/step-K` holds version K: sharded weights, AdamW's state, the generator, and `state.json` with lineage
and the groups trained since the run began its previous checkpoint. The learning rate is a function of K. Collective:
every rank calls the same function; whether it worked is agreed on at the end, so one full disk cannot part the ranks.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from services.learner import checkpoint_files as files
from services.learner.ranks import Ranks
from services.learner.train_step import Trainer
from sluice.errors import ConfigError

log = structlog.get_logger(__name__)

STATE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedBatch:
    """What one step was trained on."""

    step: int
    digest: str
    group_ids: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """What is saved beside tensors; only the leader's counts."""

    step: int
    lineage: str
    trained: list[TrainedBatch] = field(default_factory=list)
    """Batches since the previous checkpoint."""


def save(trainer: Trainer, state: CheckpointState, *, directory: Path, keep: int, ranks: Ranks) -> Path | None:
    """Writes checkpoint `trainer.step`, then removes old ones. None when the disk refused: the former ones stand."""
    step, partial = trainer.step, files.partial_of(directory, trainer.step)
    if not ranks.agree(not ranks.leads or _succeeds(lambda: files.begin(partial), step)):
        return None
    write = lambda: save_shards(_tensors(trainer), storage_writer=FileSystemWriter(partial))  # noqa: E731
    if not ranks.agree(_succeeds(write, step)):
        return None
    if not ranks.agree(not ranks.leads or _succeeds(lambda: _finish(partial, state, keep), step)):
        return None
    return files.path_of(directory, step)


def choose(resume: str, *, directory: Path) -> Path | None:
    """What `learner.resume` asks for: auto, never or a path. Raises ConfigError when a named one does not verify."""
    if resume == "never":
        return None
    if resume == "auto":
        return files.newest_that_verifies(directory)
    try:
        files.verify(Path(resume))
    except ValueError as error:
        raise ConfigError(f"learner.resume: {error}") from error
    return Path(resume)


def load(trainer: Trainer, path: Path) -> CheckpointState:
    """Restores weights, optimizer, generator and step on every rank; returns the rest."""
    tensors = _tensors(trainer)
    load_shards(tensors, storage_reader=FileSystemReader(path))
    set_state_dict(
        trainer.policy, trainer.optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"]
    )
    torch.set_rng_state(tensors["generator"])
    raw = json.loads((path / STATE).read_text())
    trainer.step = raw["step"]
    return CheckpointState(**raw | {"trained": [TrainedBatch(**batch) for batch in raw["trained"]]})


def _finish(partial: Path, state: CheckpointState, keep: int) -> None:
    (partial / STATE).write_text(json.dumps(asdict(state)))
    final = files.seal(partial, state.step)
    files.retain(final.parent, keep=keep)


def _succeeds(write: Callable[[], object], step: int) -> bool:
    """False, logged, when the disk refuses."""
    try:
        write()
    except (OSError, CheckpointException) as error:
        log.error("checkpoint_failed", step=step, error=str(error))
        return False
    return True


def _tensors(trainer: Trainer) -> dict[str, Any]:
    model, optimizer = get_state_dict(trainer.policy, trainer.optimizer)
    return {"model": model, "optimizer": optimizer, "generator": torch.get_rng_state()}
