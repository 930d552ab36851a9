"""Which groups carry a signal: DAPO eq. 11; and when a run has starved."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.advantage import group_advantages
from sluice.dapo.dynamic_sampling import SIGNAL_RANGE, Verdict, gen_batches, group_metric, judge, starved


def _judge(metric: list[float], acc: list[float]) -> Verdict:
    return judge(metric=np.array(metric), acc=np.array(acc))


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=16))
def test_eq_11_a_group_is_kept_iff_some_but_not_all_samples_are_right(acc: list[float]) -> None:
    right = sum(acc)
    expected = {0: Verdict.ALL_WRONG, len(acc): Verdict.ALL_RIGHT}.get(int(right), Verdict.KEPT)
    assert _judge(acc, acc) is expected


@pytest.mark.parametrize(
    ("metric", "acc", "verdict"),
    [
        ([1.0, 1.0], [1.0, 1.0], Verdict.ALL_RIGHT),
        ([-1.0, -1.0], [0.0, 0.0], Verdict.ALL_WRONG),
        ([0.5, 0.5], [0.0, 1.0], Verdict.OTHER),
        ([0.3, 0.3], [0.5, 0.5], Verdict.OTHER),
        ([0.0, -0.4], [0.0, 0.0], Verdict.KEPT),
        ([1.0], [1.0], Verdict.ALL_RIGHT),
    ],
)
def test_the_metric_decides_and_the_accuracies_name_the_reason(
    metric: list[float], acc: list[float], verdict: Verdict
) -> None:
    assert _judge(metric, acc) is verdict


def test_a_range_of_exactly_the_threshold_is_no_signal() -> None:
    assert _judge([0.0, SIGNAL_RANGE], [0.0, 0.0]) is Verdict.ALL_WRONG
    assert _judge([0.0, 2 * SIGNAL_RANGE], [0.0, 0.0]) is Verdict.KEPT


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=2, max_size=16))
def test_a_group_is_dropped_exactly_when_it_would_teach_nothing(rewards: list[float]) -> None:
    dropped = _judge(rewards, [0.0] * len(rewards)) is not Verdict.KEPT
    teaches_nothing = np.abs(group_advantages(np.array(rewards), norm_by_std=True)).max() < 1e-9
    assert dropped == teaches_nothing


@pytest.mark.parametrize(("metric", "acc"), [([], []), ([1.0, 0.0], [1.0]), ([math.nan, 0.0], [0.0, 0.0])])
def test_a_metric_that_is_empty_uneven_or_nan_is_refused(metric: list[float], acc: list[float]) -> None:
    with pytest.raises(ValueError, match="metric and acc"):
        _judge(metric, acc)


def test_the_metric_names_are_those_of_verl() -> None:
    raw, acc, shaped = np.array([1.0, -1.0]), np.array([1.0, 0.0]), np.array([0.5, -1.5])
    arrays: dict[str, Any] = {"raw_scores": raw, "acc": acc, "shaped_rewards": shaped}
    assert group_metric("acc", **arrays) is acc
    assert group_metric("score", **arrays) is raw
    assert group_metric("seq_reward", **arrays) is shaped
    assert group_metric("seq_final_reward", **arrays) is shaped
    unknown: Any = "accuracy"
    with pytest.raises(ValueError, match=r"filter_groups\.metric.*'accuracy'"):
        group_metric(unknown, **arrays)


def test_with_overlong_shaping_only_the_raw_metrics_drop_a_group_of_right_answers() -> None:
    raw, acc, shaped = np.ones(2), np.ones(2), np.array([1.0, 0.6])
    kept = {
        name: judge(metric=group_metric(name, raw_scores=raw, acc=acc, shaped_rewards=shaped), acc=acc)
        for name in ("acc", "score", "seq_reward")
    }
    assert kept == {"acc": Verdict.ALL_RIGHT, "score": Verdict.ALL_RIGHT, "seq_reward": Verdict.KEPT}


def test_a_run_starves_after_the_last_allowed_generation_batch() -> None:
    def at(verdicts: int) -> bool:
        return starved(verdicts_since_assignment=verdicts, gen_batch_size=4, max_num_gen_batches=3)

    assert [at(0), at(11), at(12), at(13)] == [False, False, True, True]
    assert gen_batches(verdicts_since_assignment=6, gen_batch_size=4) == 1.5


@pytest.mark.parametrize("unlimited", [0, -1])
def test_without_a_limit_a_run_never_starves(unlimited: int) -> None:
    assert not starved(verdicts_since_assignment=10**9, gen_batch_size=1, max_num_gen_batches=unlimited)
