"""One rank of a learner under test: trains what a list of jobs says. Started by torchrun from test_learner_ranks.py.

usage: learner_rank.py MODEL OUT JOBS_JSON; job i's figures go to OUT/i.npz.
"""

import dataclasses
import json
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from services.learner.batches.batch import Batch, TrainGroup
from services.learner.batches.batch_sharing import share_batch
from services.learner.machines.ranks import Command, Ranks, join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.publish import Publisher
from services.learner.saving import checkpoint
from services.learner.saving.checkpoint_writer import CheckpointWriter
from services.learner.training.train_step import Trainer
from sluice.weights.manifest import PolicyVersion
from tests.unit.learner.learner_cases import make_batch, make_config


def run_job(model: Path, job: dict[str, Any], ranks: Ranks) -> dict[str, np.ndarray]:
    """Trains a fresh (or loaded) policy to version `until`; returns weights, the last gradients and metrics.

    With `save`, a folder, version `save_at` (default: the last) is saved there; no byte is written before the training is over.
    """
    config = make_config(model, **job.get("config", {}))
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    if "load" in job:
        checkpoint.load(trainer, Path(job["load"]))
    metrics: dict[str, float] = {}
    saving = _HeldWriter(directory=Path(job.get("save", "unused")), keep=2, background=True, ranks=ranks)
    while trainer.step < job["until"]:
        assert ranks.command(Command.TRAIN) is Command.TRAIN
        metrics = trainer.train(share_batch(ranks, _batch(job, trainer.step) if ranks.leads else None))
        if "save" in job and trainer.step == job.get("save_at", job["until"]):
            saving.begin(trainer, checkpoint.CheckpointState(step=trainer.step, lineage="a"))
    saving.finish()
    snapshot = Publisher(policy=policy, config=config, ranks=ranks).gather(PolicyVersion(lineage="a", number=1))
    weights = {} if snapshot is None else {"weights": snapshot.buffer.view(np.float32)}
    return weights | _gradients(trainer) | {f"metric/{name}": np.array(value) for name, value in metrics.items()}


class _HeldWriter(CheckpointWriter):
    """Writes only when it is told to, so that training surely goes on between the copy and the write."""

    _release: threading.Event
    _written: "Future[Path | None] | None" = None

    def begin(self, trainer: Trainer, state: checkpoint.CheckpointState) -> "Future[Path | None]":
        self._release = threading.Event()
        self._written = super().begin(trainer, state)
        return self._written

    def finish(self) -> None:
        """Lets it write; the leader's checkpoint must be there then."""
        if self._written is not None:
            self._release.set()
            path = self._written.result(timeout=60)
            assert path is not None or not self._ranks.leads

    def _write(self, tensors: dict[str, Any], state: checkpoint.CheckpointState) -> Path | None:
        assert self._release.wait(timeout=60)
        return super()._write(tensors, state)


def _batch(job: dict[str, Any], step: int) -> Batch:
    batch = make_batch(step=step, groups=job["groups"], n=job["n"])
    if not job.get("poisoned"):
        return batch
    first = batch.groups[0]
    nan = np.full_like(first.sequences[0].behaviour_logprobs, np.nan)
    poisoned = dataclasses.replace(first.sequences[0], behaviour_logprobs=nan)
    group = TrainGroup(group_id=first.group_id, sequences=(poisoned, *first.sequences[1:]))
    return dataclasses.replace(batch, groups=(group, *batch.groups[1:]))


def _gradients(trainer: Trainer) -> dict[str, np.ndarray]:
    """The last update's whole gradients, by parameter name; collective."""
    found = {}
    for name, parameter in trainer.policy.causal_lm.named_parameters():
        if not parameter.requires_grad:  # frozen under adapters
            continue
        if parameter.grad is None:
            continue  # nothing was trained
        whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        found[f"grad/{name}"] = whole.cpu().numpy().copy()
    return found


def main() -> None:
    """Runs all jobs on this rank."""
    torch.set_num_threads(1)
    model, out, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    ranks = join_ranks()
    for index, job in enumerate(jobs):
        found = run_job(model, job, ranks)
        if ranks.leads:
            np.savez(out / f"{index}.npz", **found)  # pyright: ignore[reportArgumentType]
    ranks.leave()


if __name__ == "__main__":
    main()
