"""One rank of a learner under test: trains what a list of jobs says. Started by torchrun from test_learner_ranks.py.

usage: learner_rank.py MODEL OUT JOBS_JSON; job i's figures go to OUT/i.npz.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from services.learner import checkpoint
from services.learner.batch import Batch, TrainGroup
from services.learner.batch_sharing import share_batch
from services.learner.model import load_policy, make_optimizer
from services.learner.publish import Publisher
from services.learner.ranks import Command, Ranks, join_ranks
from services.learner.train_step import Trainer
from sluice.weights.manifest import PolicyVersion
from tests.unit.learner.learner_cases import make_batch, make_config


def run_job(model: Path, job: dict[str, Any], ranks: Ranks) -> dict[str, np.ndarray]:
    """Trains a fresh (or loaded) policy to version `until`; returns weights, the last gradients and metrics."""
    config = make_config(model, **job.get("config", {}))
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    if "load" in job:
        checkpoint.load(trainer, Path(job["load"]))
    metrics: dict[str, float] = {}
    while trainer.step < job["until"]:
        assert ranks.command(Command.TRAIN) is Command.TRAIN
        metrics = trainer.train(share_batch(ranks, _batch(job, trainer.step) if ranks.leads else None))
    if "save" in job:
        state = checkpoint.CheckpointState(step=trainer.step, lineage="a")
        assert checkpoint.save(trainer, state, directory=Path(job["save"]), keep=2, ranks=ranks)
    snapshot = Publisher(policy=policy, config=config, ranks=ranks).gather(PolicyVersion(lineage="a", number=1))
    weights = {} if snapshot is None else {"weights": snapshot.buffer.view(np.float32)}
    return weights | _gradients(trainer) | {f"metric/{name}": np.array(value) for name, value in metrics.items()}


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
        assert parameter.grad is not None
        whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        found[f"grad/{name}"] = whole.numpy().copy()
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
