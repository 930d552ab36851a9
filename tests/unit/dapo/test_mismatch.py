"""How far learner and behaviour policy are apart."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.mismatch import mismatch
from sluice.telemetry.catalogue import NAMES

diffs = st.lists(st.floats(-3, 3), min_size=1, max_size=30)


def _mismatch(differences: list[float], ages: list[int] | None = None) -> dict[str, float]:
    rollout = np.full(len(differences), -1.0, dtype=np.float32)
    ages = [0] * len(differences) if ages is None else ages
    learner = rollout.astype(np.float64) + np.array(differences)
    return mismatch(rollout_logprobs=rollout, learner_logprobs=learner, ages=np.array(ages))


def test_the_statistics_by_hand_of_ratios_two_and_a_half() -> None:
    stats = _mismatch([math.log(2), -math.log(2)], ages=[0, 3])
    assert stats == pytest.approx(
        {
            "mismatch/abs_diff_mean": math.log(2),
            "mismatch/abs_diff_max": math.log(2),
            "mismatch/k1_nats": 0.0,
            "mismatch/k3_nats": (1 - math.log(2) + math.log(2) - 0.5) / 2,
            "mismatch/k1_age0_nats": -math.log(2),
            "mismatch/k1_age2plus_nats": math.log(2),
            "mismatch/k3_age0_nats": 1 - math.log(2),
            "mismatch/k3_age2plus_nats": math.log(2) - 0.5,
            "mismatch/ratio_p50": 1.25,
            "mismatch/ratio_p99": 0.5 + 0.99 * 1.5,
            "mismatch/ess": 2.5**2 / (2 * 4.25),
        },
        abs=1e-12,
    )


def test_every_statistic_has_a_name_of_the_catalogue() -> None:
    stats = _mismatch([0.1, 0.2, 0.3], ages=[0, 1, 2])
    assert set(stats) == {name for name in NAMES if name.startswith("mismatch/")}


def test_equal_policies_do_not_differ() -> None:
    stats = _mismatch([0.0] * 5)
    assert stats["mismatch/abs_diff_max"] == stats["mismatch/k1_nats"] == stats["mismatch/k3_nats"] == 0.0
    assert stats["mismatch/ess"] == stats["mismatch/ratio_p50"] == stats["mismatch/ratio_p99"] == 1.0


@given(diffs)
def test_k3_is_never_negative_and_ess_is_a_share(differences: list[float]) -> None:
    stats = _mismatch(differences)
    assert stats["mismatch/k3_nats"] >= 0.0
    assert 1 / len(differences) - 1e-12 <= stats["mismatch/ess"] <= 1 + 1e-12


@given(diffs, st.data())
def test_k3_is_the_mean_over_ages_of_its_parts(differences: list[float], data: st.DataObject) -> None:
    ages = data.draw(st.lists(st.integers(0, 4), min_size=len(differences), max_size=len(differences)))
    stats = _mismatch(differences, ages)
    counts = {"age0": ages.count(0), "age1": ages.count(1), "age2plus": sum(a >= 2 for a in ages)}
    parts = sum(stats[f"mismatch/k3_{name}_nats"] * count for name, count in counts.items() if count)
    assert parts / len(ages) == pytest.approx(stats["mismatch/k3_nats"], abs=1e-9)


def test_k1_and_k3_estimate_the_divergence_of_two_known_policies() -> None:
    random = np.random.default_rng(0)
    rollout, learner = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    exact = (rollout * np.log(rollout / learner)).sum()
    drawn = random.choice(3, size=200_000, p=rollout)
    stats = mismatch(
        rollout_logprobs=np.log(rollout)[drawn],
        learner_logprobs=np.log(learner)[drawn],
        ages=np.zeros(drawn.size, dtype=np.int64),
    )
    assert stats["mismatch/k1_nats"] == pytest.approx(exact, abs=2e-3)
    assert stats["mismatch/k3_nats"] == pytest.approx(exact, abs=5e-4)


def test_one_broken_token_leaves_every_statistic_finite() -> None:
    stats = _mismatch([2000.0, 0.0])
    assert all(math.isfinite(value) for value in stats.values())
    assert stats["mismatch/abs_diff_max"] == 2000.0


@pytest.mark.parametrize("common", [-700.0, -30.0, 30.0, 700.0])
def test_the_share_of_useful_tokens_does_not_depend_on_a_factor_common_to_all_ratios(common: float) -> None:
    stats = _mismatch([common + math.log(2), common - math.log(2)])
    assert stats["mismatch/ess"] == pytest.approx(2.5**2 / (2 * 4.25))


def test_uneven_empty_and_negative_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        _mismatch([0.0, 0.0], ages=[0])
    with pytest.raises(ValueError, match="one length"):
        _mismatch([])
    with pytest.raises(ValueError, match="ages must be >= 0"):
        _mismatch([0.0], ages=[-1])
