"""One rank of a learner under test: trains what a list of jobs says. See `on_ranks`; under torchrun a program.

arguments: MODEL OUT JOBS_JSON; job i's figures go to OUT/i.npz.
"""

import json
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from services.learner.batches.batch import Batch
from services.learner.batches.batch_sharing import share_batch
from services.learner.checkpoint import training_state as checkpoint
from services.learner.checkpoint.writer import CheckpointWriter
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import Command, Ranks, join_ranks
from services.learner.policy import model as loading
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.policy.proof import Forms, prove
from services.learner.snapshot.pack import SnapshotPacker
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from tests.forked import run_ranks
from tests.unit.learner.learner_cases import make_batch, make_config, make_episodes, poisoned


def on_ranks(model: Path, out: Path, jobs: list[dict[str, Any]], *, ranks: int) -> list[dict[str, np.ndarray]]:
    """Runs the jobs on `ranks` processes and returns what rank 0 wrote of each; `out` is made."""
    out.mkdir()
    run_ranks(main, str(model), str(out), json.dumps(jobs), ranks=ranks, log=out / "ranks.log")
    return [dict(np.load(out / f"{index}.npz")) for index in range(len(jobs))]


def run_job(model: Path, job: dict[str, Any], ranks: Ranks) -> dict[str, np.ndarray]:
    """Trains a fresh (or loaded) policy to version `until`; returns weights, the last gradients, metrics and example.

    With `save`, a folder, version `save_at` (default: the last) is saved there; no byte is written before the training is over.
    """
    config = make_config(model, **job.get("config", {}))
    with patch.object(loading, "prove", _prove_once):
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
    snapshot = SnapshotPacker(policy=policy, config=config, ranks=ranks).gather(PolicyVersion(lineage="a", number=1))
    weights = {} if snapshot is None else {"weights": snapshot.buffer.view(np.float32)}
    figures = {f"metric/{name}": np.array(value) for name, value in metrics.items()}
    if trainer.example is not None:
        figures |= {f"example/{name}": getattr(trainer.example, name) for name in ("log_ratios", "entropies")}
    return weights | _gradients(trainer) | figures


def _prove_once(config: Config, model_config: PreTrainedConfig, **given: Any) -> Forms:
    """The proof of a model takes as long as a small step, and all ranks have had the same jobs before."""
    learner = config.learner
    same = (
        learner.gradient_checkpointing,
        learner.fp32_lm_head,
        learner.logprob_chunk_tokens,
        config.rollout.temperature,
    )
    key = repr((config.model, model_config.to_json_string(), *same))
    if key not in _PROVED:
        _PROVED[key] = prove(config, model_config, **given)
    return _PROVED[key]


_PROVED: dict[str, Forms] = {}


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
    make = make_episodes if job.get("episodes") else make_batch
    batch = make(step=step, groups=job["groups"], n=job["n"])
    return poisoned(batch) if job.get("poisoned") else batch


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
    end_process(main)
