"""Truncated importance weights and masks, by hand."""

import math

import pytest
import torch

from sluice.dapo.correction import (
    broadcast_log_ratio,
    importance_weights,
    off_policy_sequence_mask,
    rejection_mask,
)
from sluice.dapo.loss import log_ratios

SEQUENCE = torch.tensor([0, 0, 1])
LOG_RATIOS = torch.log(torch.tensor([2.0, 3.0, 0.5]))


def test_a_tokens_own_ratio_is_left_as_it_is_but_for_the_clamp() -> None:
    found = broadcast_log_ratio(torch.tensor([0.5, -99.0]), level="token", sequence=torch.tensor([0, 0]), sequences=1)
    assert found.tolist() == [0.5, -20.0]


def test_a_sequences_ratio_is_the_product_of_its_tokens_ratios() -> None:
    found = broadcast_log_ratio(LOG_RATIOS, level="sequence", sequence=SEQUENCE, sequences=2).exp()
    assert found.tolist() == pytest.approx([6.0, 6.0, 0.5])


def test_the_geometric_ratio_is_the_mean_in_logarithms() -> None:
    found = broadcast_log_ratio(LOG_RATIOS, level="geometric", sequence=SEQUENCE, sequences=2).exp()
    assert found.tolist() == pytest.approx([math.sqrt(6.0), math.sqrt(6.0), 0.5])


def test_a_sequences_ratio_is_clamped_as_a_whole_and_not_by_token() -> None:
    one = torch.zeros(3, dtype=torch.int64)
    broken = log_ratios(torch.tensor([-31.0, 14.0, 13.5]), torch.full((3,), -1.0))
    assert broadcast_log_ratio(broken, level="sequence", sequence=one, sequences=1).tolist() == [-0.5] * 3
    assert broadcast_log_ratio(broken * 3, level="geometric", sequence=one, sequences=1).tolist() == [-0.5] * 3
    assert broadcast_log_ratio(broken + 60, level="sequence", sequence=one, sequences=1).tolist() == [20.0] * 3
    assert importance_weights(torch.tensor([-0.5]), threshold=2.0).item() == pytest.approx(0.607, abs=1e-3)


def test_a_sequence_without_tokens_and_an_empty_micro_batch_are_fine() -> None:
    assert broadcast_log_ratio(LOG_RATIOS, level="geometric", sequence=SEQUENCE + 1, sequences=4).shape == (3,)
    assert broadcast_log_ratio(torch.zeros(0), level="sequence", sequence=torch.zeros(0).long(), sequences=0).shape == (
        0,
    )


def test_importance_weights_are_truncated_from_above_only() -> None:
    assert importance_weights(LOG_RATIOS, threshold=2.5).tolist() == pytest.approx([2.0, 2.5, 0.5])


def test_what_leaves_either_bound_is_masked_and_the_bounds_belong_to_it() -> None:
    assert rejection_mask(torch.log(torch.tensor([0.25, 1.0, 4.0])), lower=0.25, upper=4.0).tolist() == [
        True,
        True,
        True,
    ]
    assert rejection_mask(LOG_RATIOS, lower=0.6, upper=2.5).tolist() == [True, False, False]


def test_a_ratio_that_is_not_a_number_is_masked() -> None:
    assert rejection_mask(torch.tensor([math.nan]), lower=0.5, upper=2.0).tolist() == [False]


def test_only_bad_sequences_that_the_learner_has_left_are_masked() -> None:
    drift = torch.tensor([-0.3, -0.3, -0.2, 0.3, math.nan, math.nan])  # nats a token, learner - rollout
    advantages = torch.tensor([-1.0, 1.0, -1.0, -1.0, -1.0, 0.0])
    kept = off_policy_sequence_mask(drift, advantages, delta=0.2)
    assert kept.tolist() == [False, True, True, True, False, True]
