"""Weights that turn token losses into one loss: DAPO eq. 12 and its predecessors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.aggregation import LOSS_AGG_MODES, token_weights

MAX_RESPONSE_LENGTH = 20.0

token_counts = st.lists(st.integers(0, 50), min_size=1, max_size=20).map(np.array)


def _weights(trained_tokens: np.ndarray | list[int], mode: str) -> np.ndarray:
    return token_weights(np.array(trained_tokens), mode=mode, loss_scale_factor=MAX_RESPONSE_LENGTH)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", [1 / 4, 0, 1 / 4]),
        ("seq-mean-token-sum", [1 / 2, 0, 1 / 2]),
        ("seq-mean-token-mean", [1 / 2, 0, 1 / 6]),
        ("seq-mean-token-sum-norm", [1 / 40, 0, 1 / 40]),
    ],
)
def test_weights_by_hand_of_one_three_and_no_trained_tokens(mode: str, expected: list[float]) -> None:
    assert _weights([1, 0, 3], mode).tolist() == pytest.approx(expected, abs=1e-15)


@given(token_counts, st.integers(0, 1000))
def test_the_weighted_sum_is_the_loss_that_each_mode_names(counts: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = [random.uniform(-1, 1, size=count).tolist() for count in counts if count]
    if not losses:
        return
    flat = [loss for sequence in losses for loss in sequence]
    means, sums = [sum(s) / len(s) for s in losses], [sum(s) for s in losses]
    named = {
        "token-mean": sum(flat) / len(flat),
        "seq-mean-token-sum": sum(sums) / len(sums),
        "seq-mean-token-mean": sum(means) / len(means),
        "seq-mean-token-sum-norm": sum(sums) / len(sums) / MAX_RESPONSE_LENGTH,
    }
    for mode in LOSS_AGG_MODES:
        weights = _weights(counts, mode)
        weighted = sum(w * sum(s) for w, s in zip(weights[counts > 0], losses, strict=True))
        assert weighted == pytest.approx(named[mode], abs=1e-12)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@given(counts=token_counts)
def test_the_weights_of_all_tokens_of_a_mean_sum_to_one(mode: str, counts: np.ndarray) -> None:
    total = (_weights(counts, mode) * counts).sum()
    assert total == pytest.approx(1.0 if counts.any() else 0.0)


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
@given(counts=token_counts)
def test_fully_masked_sequences_change_nothing_for_the_others(mode: str, counts: np.ndarray) -> None:
    weights = _weights(counts, mode)
    assert (weights[counts == 0] == 0).all()
    np.testing.assert_array_equal(weights[counts > 0], _weights(counts[counts > 0], mode))


def test_a_mini_batch_without_any_trained_token_weighs_nothing() -> None:
    assert _weights([0, 0], "token-mean").tolist() == [0.0, 0.0]


def test_an_unknown_mode_a_negative_count_and_a_missing_factor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_agg_mode.*'mean'"):
        token_weights(np.array([1]), mode="mean")
    with pytest.raises(ValueError, match="counts >= 0"):
        token_weights(np.array([1, -1]), mode="token-mean")
    with pytest.raises(ValueError, match="loss_scale_factor"):
        token_weights(np.array([1]), mode="seq-mean-token-sum-norm")
