"""The training state in the form of torch.distributed.checkpoint: any number of ranks reads what any number wrote.

`RUN/checkpoints/step-K` holds version K: sharded weights, AdamW's state, the generator, and `state.json` with lineage
and the groups trained since the run completed its previous checkpoint. The learning rate is a function of K. Frozen
weights are not saved: they come from `model.path`. writer.py writes checkpoints.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards

from services.learner.checkpoint import folders
from services.learner.checkpoint.training_record import TrainedBatch
from services.learner.training.train_step import Trainer
from sluice.errors import ConfigError
from sluice.lineage import Rollback
from sluice.run_dir.checkpoints import STATE


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointState:
    """The facts saved beside tensors; only the leader's copy counts."""

    step: int
    lineage: str
    trained: list[TrainedBatch] = field(default_factory=list)
    """Batches since the previous complete checkpoint."""


def training_state(trainer: Trainer) -> dict[str, Any]:
    """Weights, optimizer and generator of this rank: the live tensors, not copies. Collective."""
    fresh = not trainer.optimizer.state
    if fresh:  # no update yet, or all updates were skipped; with a gradient in place torch would leave the moments out
        trainer.optimizer.zero_grad()
    model, optimizer = get_state_dict(trainer.policy, trainer.optimizer)
    if fresh:
        for moments in trainer.optimizer.state.values():
            moments["step"].zero_()  # torch made the moments by an update of zero, which does not count
    if frozen := _frozen(trainer):
        model = {name: tensor for name, tensor in model.items() if name not in frozen}
    return {"model": model, "optimizer": optimizer, "generator": torch.get_rng_state()}


def write_state(state: CheckpointState, directory: Path) -> None:
    """Writes `state.json`. Raises OSError."""
    (directory / STATE).write_text(json.dumps(asdict(state)))


def read_state(directory: Path) -> CheckpointState:
    """The state that `write_state` wrote to a folder that has been verified."""
    raw = json.loads((directory / STATE).read_text(encoding="utf-8"))
    return CheckpointState(**raw | {"trained": [TrainedBatch(**batch) for batch in raw["trained"]]})


def choose(resume: str, *, directory: Path, rollbacks: Sequence[Rollback] = ()) -> Path | None:
    """The checkpoint that `learner.resume` (auto, never or a path) asks for; None: start from version 0.

    Raises ConfigError when a named checkpoint does not verify, or when one of the run's `rollbacks` has given it up.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return folders.newest_that_verifies(directory, rollbacks)
    try:
        folders.verify(Path(resume))
        folders.refuse_given_up(Path(resume), read_state(Path(resume)).step, rollbacks)
    except ValueError as error:
        raise ConfigError(f"learner.resume: {error}") from error
    return Path(resume)


def load(trainer: Trainer, path: Path) -> CheckpointState:
    """Restores weights, optimizer, generator and step on every rank; returns the other facts. Collective."""
    tensors = training_state(trainer)
    load_shards(tensors, storage_reader=FileSystemReader(path))
    set_state_dict(
        trainer.policy,
        trainer.optimizer,
        model_state_dict=tensors["model"],
        optim_state_dict=tensors["optimizer"],
        options=StateDictOptions(strict=not _frozen(trainer)),
    )
    torch.set_rng_state(tensors["generator"])
    state = read_state(path)
    trainer.step = state.step
    return state


def _frozen(trainer: Trainer) -> set[str]:
    """Names of the frozen parameters, with all names of a shared tensor; torch's own option would keep a tied head."""
    named = trainer.policy.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
