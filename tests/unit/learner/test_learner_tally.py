"""A step's `loss/*` figures against numpy on the same numbers."""

from typing import Any

import numpy as np
import pytest
import torch

from services.learner.batches.batch import TrainSequence
from services.learner.policy.packing import Packed, pack
from services.learner.training.objective import Objective
from services.learner.training.tally import Tally
from sluice.config.schema import AlgorithmConfig
from tests.unit.learner.learner_cases import make_batch

BIN = 0.0006
"""Quantiles are middles of bins of 0.1 %, relative."""


def _packed(seed: int, step: int = 0) -> Packed:
    sequences: list[TrainSequence] = make_batch(step=step, seed=seed, groups=40, n=6).sequences
    sequences.sort(key=lambda sequence: -sequence.input_tokens)
    ones = [1.0] * len(sequences)
    return pack(sequences, step=step, advantages=ones, weights=ones, device=torch.device("cpu"))


def _tallied(algorithm: AlgorithmConfig, seed: int, *, spread: float) -> tuple[Tally, dict[str, np.ndarray]]:
    """One micro-batch counted, in chunks, and its numbers in float64."""
    packed = _packed(seed)
    rng = np.random.default_rng(seed)
    rollout = packed.rollout_logprobs.numpy()
    proximal = (rollout + rng.normal(0, spread, len(rollout))).astype(np.float32)
    learner = (proximal + rng.normal(0, spread, len(rollout))).astype(np.float32)
    asked = torch.from_numpy(proximal) if algorithm.proximal == "recompute" else None
    objective = Objective(algorithm, packed, asked)
    logprobs = torch.from_numpy(learner)
    if objective.wants_preview:
        objective.preview(logprobs)
    for first in range(0, len(learner), 100):
        where = slice(first, min(first + 100, len(learner)))
        objective(logprobs[where], where)
    tally = Tally(torch.device("cpu"))
    tally.add(objective.stats(), torch.zeros(len(learner)))
    numbers = {"rollout": rollout, "proximal": proximal, "learner": learner}
    return tally, {name: values.astype(np.float64) for name, values in numbers.items()}


def _algorithm(**settings: Any) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(settings)


@pytest.mark.parametrize("spread", [0.02, 0.5])
def test_quantiles_mean_and_maximum_of_the_ratio_over_two_updates_are_those_of_all_their_tokens(spread: float) -> None:
    (first, ours), (second, theirs) = (_tallied(_algorithm(), seed, spread=spread) for seed in (1, 2))
    first.merge(second)
    found = first.metrics(updates=2)
    ratios = np.exp(np.concatenate([part["learner"] - part["rollout"] for part in (ours, theirs)]))
    assert first.tokens == len(ratios) > 2000
    for share, name in ((0.5, "loss/ratio_p50"), (0.99, "loss/ratio_p99")):
        assert found[name] == pytest.approx(np.quantile(ratios, share, method="inverted_cdf"), rel=BIN)
    assert found["loss/ratio_mean"] == pytest.approx(ratios.mean(), rel=1e-6)
    assert found["loss/ratio_max"] == pytest.approx(ratios.max(), rel=1e-6)


def test_ratios_beyond_the_counted_range_count_at_its_ends() -> None:
    tally, numbers = _tallied(_algorithm(), 1, spread=8.0)
    ratios = np.exp(numbers["learner"] - numbers["rollout"])
    assert np.quantile(ratios, 0.99) > np.exp(3.0)
    found = tally.metrics(updates=1)
    assert found["loss/ratio_p99"] == pytest.approx(np.exp(3.0), rel=BIN)
    assert found["loss/ratio_p50"] == pytest.approx(np.quantile(ratios, 0.5, method="inverted_cdf"), rel=BIN)


@pytest.mark.parametrize("proximal", ["rollout", "recompute"])
def test_the_masked_fraction_is_the_share_of_tokens_whose_ratio_to_the_rollout_leaves_the_bounds(proximal: str) -> None:
    correction = {"rollout_rs": "token", "rollout_rs_threshold": 1.5}
    tally, numbers = _tallied(_algorithm(proximal=proximal, rollout_correction=correction), 3, spread=0.4)
    asked = numbers["proximal" if proximal == "recompute" else "learner"]
    ratios = np.exp(asked - numbers["rollout"])
    outside = (ratios > 1.5) | (ratios < 1 / 1.5)
    assert 0.2 < outside.mean() < 0.8
    found = tally.metrics(updates=1)
    assert found["loss/rs_masked_fraction"] == pytest.approx(outside.mean(), abs=1e-12)
    assert found["loss/is_truncated_fraction"] == 0


def test_the_truncated_fraction_is_the_share_of_tokens_whose_weight_was_cut_and_that_no_mask_took_out() -> None:
    correction = {"rollout_is": "token", "rollout_is_threshold": 1.2}
    mask = {"rollout_rs": "token", "rollout_rs_threshold": 2.0}
    for settings, upper in ((correction, np.inf), (correction | mask, 2.0)):
        tally, numbers = _tallied(_algorithm(proximal="recompute", rollout_correction=settings), 4, spread=0.4)
        weights = np.exp(numbers["proximal"] - numbers["rollout"])
        cut = (weights > 1.2) & (weights <= upper)
        assert 0.1 < cut.mean() < 0.9
        assert tally.metrics(updates=1)["loss/is_truncated_fraction"] == pytest.approx(cut.mean(), abs=1e-12)


def test_a_step_in_which_nothing_was_trained_has_no_loss_figures() -> None:
    assert Tally(torch.device("cpu")).metrics(updates=0) == {}
