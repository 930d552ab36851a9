"""Group-relative advantages: DAPO eq. 9, and MaxRL's."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.advantage import group_advantages, maxrl_advantages

rewards_of_a_group = st.lists(st.floats(-10, 10), min_size=2, max_size=32).map(np.array)


def test_eq_9_by_hand_one_right_of_four() -> None:
    # mean -0.5; unbiased variance (2.25 + 3 * 0.25) / 3 = 1, std 1
    advantages = group_advantages(np.array([1.0, -1.0, -1.0, -1.0]), norm_by_std=True, eps=0.0)
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-12)


def test_without_std_rewards_are_only_centred() -> None:
    assert group_advantages(np.array([3.0, 1.0, -1.0]), norm_by_std=False).tolist() == [2.0, 0.0, -2.0]


@pytest.mark.parametrize("norm_by_std", [True, False])
def test_the_advantage_of_a_group_of_one_is_its_reward(norm_by_std: bool) -> None:
    assert group_advantages(np.array([0.7]), norm_by_std=norm_by_std).tolist() == [0.7]


@given(rewards_of_a_group)
def test_eq_9_agrees_with_a_naive_loop(rewards: np.ndarray) -> None:
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    naive = [(reward - mean) / (std + 1e-6) for reward in rewards.tolist()]
    np.testing.assert_allclose(group_advantages(rewards, norm_by_std=True), naive, rtol=1e-6, atol=1e-6)


@given(rewards_of_a_group, st.booleans())
def test_advantages_sum_to_zero_and_keep_the_order_of_rewards(rewards: np.ndarray, norm_by_std: bool) -> None:
    advantages = group_advantages(rewards, norm_by_std=norm_by_std)
    assert math.isclose(advantages.sum(), 0.0, abs_tol=1e-8)
    assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()


@given(rewards_of_a_group, st.floats(-5, 5), st.floats(0.1, 10))
def test_normed_advantages_ignore_the_offset_and_scale_of_rewards(
    rewards: np.ndarray, offset: float, scale: float
) -> None:
    if np.ptp(rewards) < 0.1:
        return  # eps would show
    moved = group_advantages(scale * rewards + offset, norm_by_std=True)
    np.testing.assert_allclose(moved, group_advantages(rewards, norm_by_std=True), atol=1e-2)


def test_equal_rewards_have_no_advantage() -> None:
    assert np.abs(group_advantages(np.full(7, 0.1), norm_by_std=True)).max() < 1e-9


def test_integer_rewards_give_float64() -> None:
    assert group_advantages(np.array([1, 0]), norm_by_std=False).dtype == np.float64


@pytest.mark.parametrize("rewards", [[], [[1.0, 0.0]], [1.0, math.nan], [1.0, math.inf]])
def test_rewards_that_are_no_finite_vector_are_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(np.array(rewards), norm_by_std=True)


@pytest.mark.parametrize(
    ("accs", "expected"),
    [
        ([1.0, 0.0, 0.0, 0.0], [3.0, -1.0, -1.0, -1.0]),  # rate 1/4
        ([1.0, 1.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3, -1.0]),  # rate 3/4
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, 1.0], [0.0, 0.0]),
        ([1.0], [0.0]),
    ],
)
def test_maxrl_divides_by_the_groups_success_rate(accs: list[float], expected: list[float]) -> None:
    assert maxrl_advantages(np.array(accs), eps=0.0 if any(accs) else 1e-6).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("accs", [[], [[1.0, 0.0]], [1.0, -1.0], [0.0, 1.5], [1.0, math.nan]])
def test_accuracies_that_are_not_right_or_wrong_are_refused(accs: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        maxrl_advantages(np.array(accs))
