"""The same batch gives the same gradient on any number of ranks, however it is cut; what two ranks save, one loads."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.ranks import Ranks, join_ranks
from tests.integration.learner_rank import run_job
from tests.reference_dapo import reference_update
from tests.unit.learner.learner_cases import as_reference, make_batch, make_config, write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
Figures = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """This process as the only rank."""
    ranks = join_ranks()
    yield ranks
    ranks.leave()


def _job(*, mode: str = "token-mean", max_tokens: int = 64, filtering: bool = False, **more: Any) -> dict[str, Any]:
    learner = {"mini_batch_size": 3, "max_tokens_per_micro_batch": max_tokens, "lr": 1e-2, "warmup_steps": 2}
    algorithm = {"loss_agg_mode": mode, "overlong_filtering": filtering}
    config = {"algorithm": algorithm, "learner": learner | {"weight_decay": 0.01}}
    return {"until": 1, "groups": 5, "n": 3, "config": config, **more}


def _run(model: Path, out: Path, jobs: list[dict[str, Any]], *, ranks: int) -> list[Figures]:
    """Runs the jobs on `ranks` processes and returns what rank 0 wrote of each."""
    out.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--no-python", "--nproc-per-node", str(ranks)]
    worker = [sys.executable, str(Path(__file__).with_name("learner_rank.py")), str(model), str(out), json.dumps(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *torchrun, *worker],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return [dict(np.load(out / f"{index}.npz")) for index in range(len(jobs))]


def _reference(model_path: Path, *, mode: str, filtering: bool, groups: int = 5, n: int = 3) -> Figures:
    """Gradients and figures of the last update of the plain single-process reference."""
    config = make_config(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learner.lr / 2, betas=config.learner.betas, weight_decay=0.01
    )
    updates = reference_update(
        model,
        optimizer,
        as_reference(make_batch(groups=groups, n=n)),
        mini_batch_size=3,
        temperature=config.rollout.temperature,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=10.0,
        loss_agg_mode=mode,
        norm_adv_by_std=True,
        grad_clip=config.learner.grad_clip,
        loss_scale_factor=16.0,
        overlong_filtering=filtering,
    )
    found = {f"grad/{name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    found["loss"] = np.mean([update.loss for update in updates])
    found["grad_norm"] = np.mean([update.grad_norm for update in updates])
    return found


def _assert_equal(ours: Figures, theirs: Figures) -> None:
    assert ours["metric/learner/updates"] == 2
    assert ours["metric/loss/policy"] == pytest.approx(theirs["loss"], abs=2e-6)
    assert ours["metric/loss/grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    for name in (name for name in theirs if name.startswith("grad/")):
        assert np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("max_tokens", [1, 24, 10_000])
@pytest.mark.parametrize("mode", MODES)
def test_two_updates_equal_the_plain_reference_however_the_batch_is_cut(
    model_path: Path, alone: Ranks, mode: str, max_tokens: int
) -> None:
    ours = run_job(model_path, _job(mode=mode, max_tokens=max_tokens, filtering=True), alone)
    _assert_equal(ours, _reference(model_path, mode=mode, filtering=True))


def test_two_ranks_equal_the_reference_and_one_rank_goes_on_from_what_they_saved(
    model_path: Path, alone: Ranks, tmp_path: Path
) -> None:
    jobs = [
        _job(max_tokens=40),
        _job(mode="seq-mean-token-mean", filtering=True),
        _job(until=2, save=str(tmp_path / "c")),
    ]
    plain, filtered, _ = _run(model_path, tmp_path / "out", jobs, ranks=2)
    _assert_equal(plain, _reference(model_path, mode="token-mean", filtering=False))
    _assert_equal(filtered, _reference(model_path, mode="seq-mean-token-mean", filtering=True))
    resumed = run_job(model_path, _job(until=3, load=str(tmp_path / "c" / "step-2")), alone)
    straight = run_job(model_path, _job(until=3), alone)
    assert np.allclose(resumed["weights"], straight["weights"], rtol=1e-3, atol=1e-5)


def test_three_ranks_equal_the_reference_with_more_ranks_than_work_and_skip_a_bad_update_together(
    model_path: Path, tmp_path: Path
) -> None:
    jobs = [_job(max_tokens=1), _job(groups=4, n=2, max_tokens=10_000), _job(groups=2, poisoned=True)]
    even, tiny, poisoned = _run(model_path, tmp_path / "out", jobs, ranks=3)
    _assert_equal(even, _reference(model_path, mode="token-mean", filtering=False))
    _assert_equal(tiny, _reference(model_path, mode="token-mean", filtering=False, groups=4, n=2))
    assert (poisoned["metric/learner/updates"], poisoned["metric/learner/skipped_updates"]) == (0, 1)
    assert np.isfinite(poisoned["weights"]).all()


def test_four_steps_straight_equal_two_and_two_bit_for_bit(model_path: Path, alone: Ranks, tmp_path: Path) -> None:
    straight = run_job(model_path, _job(until=4), alone)
    run_job(model_path, _job(until=2, save=str(tmp_path)), alone)
    resumed = run_job(model_path, _job(until=4, load=str(tmp_path / "step-2")), alone)
    assert np.array_equal(straight["weights"], resumed["weights"])
    assert resumed["metric/loss/lr"] == straight["metric/loss/lr"]


def test_recomputing_activations_and_logits_changes_nothing(model_path: Path, alone: Ranks) -> None:
    plain, frugal = _job(), _job()
    frugal["config"]["learner"] |= {"gradient_checkpointing": True, "logprob_chunk_tokens": 7}
    ours, theirs = (run_job(model_path, job, alone) for job in (frugal, plain))
    assert np.allclose(ours["weights"], theirs["weights"], rtol=1e-4, atol=1e-6)
