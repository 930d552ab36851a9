"""The figures of two benchmarks about waste: a curve of accuracy, and what a probe of a group's first samples would do."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.difficulty_parts.curves import Point, compared, curve, reached
from benchmarks.difficulty_parts.sets import NO_SUM, PROMPTS, set_of
from benchmarks.early_acceptance import Population, probe
from sluice.tasks import mixadd3


def line(**values: float | str) -> dict[str, float | str]:
    return {name.replace("__", "/"): value for name, value in values.items()}


LINES = [
    line(kind="eval", version=0, time_s=90.0, eval__avg_at_n=0.3),
    line(kind="step", step=0, time_s=110.0, step__wall_s=10.0, ledger__admitted_groups=40.0),
    line(kind="eval", version=1, time_s=112.0, eval__avg_at_n=0.5),
    line(kind="step", step=1, time_s=120.0, step__wall_s=10.0, ledger__admitted_groups=60.0),
    line(kind="eval", version=2, time_s=121.0, eval__avg_at_n=0.7),
]


def test_a_level_is_reached_where_a_line_through_log_odds_and_log_completions_reaches_it() -> None:
    assert curve(LINES, n=8) == [  # type: ignore[arg-type]
        Point(version=1, completions=320.0, seconds=10.0, accuracy=0.5),
        Point(version=2, completions=480.0, seconds=20.0, accuracy=0.7),
    ]
    exact = points(slope=0.7)
    for level in (0.6, 0.8, 0.9):
        at = reached(exact, level)
        assert at is not None
        assert at.completions == pytest.approx(1000 * (level / (1 - level)) ** (1 / 0.7))
        assert at.seconds == pytest.approx(at.completions / 100)
        assert at.error < 1e-6
    assert reached(exact, 0.3) is None, "the run had passed it at its first evaluation"
    assert reached(exact, 0.99) is None
    assert reached(exact[:3], 0.6) is None, "three points show no noise"
    assert reached(points(slope=-0.7), 0.6) is None


def test_a_level_moves_less_than_its_crossing_when_evaluations_are_noisy_and_its_error_says_how_much() -> None:
    random, found = np.random.default_rng(0), list[float]()
    for _ in range(300):
        noisy = points(slope=0.7, noise=lambda: float(random.normal(0, 0.02)))
        at = reached(noisy, 0.85)
        assert at is not None
        found.append((math.log(at.completions / 1000) - math.log(0.85 / 0.15) / 0.7) / at.error)
    assert abs(np.mean(found)) < 0.4
    assert 0.8 < np.std(found) < 1.4, "in standard errors"


def test_arms_are_compared_by_level_and_what_a_curriculum_measured_before_counts() -> None:
    half = points(slope=0.7, scale=0.5)
    rows = {row.what: row for row in compared("a", "difficulty", half, points(slope=0.7))}
    assert rows["a: completions to 0.8, difficulty / shuffle"].value == pytest.approx(0.5)
    assert rows["a: completions to 0.9, difficulty / shuffle"].met, "at most .6"
    assert rows["a: accuracy at equal steps, difficulty - shuffle, mean over the run"].met
    worse = compared("a", "difficulty", points(slope=0.7), half)
    assert not any(row.met for row in worse if row.target.startswith("<="))
    first, *_ = compared("a", "curriculum", half, points(slope=0.7), before=1000)
    at = reached(half, 0.6)
    assert at is not None
    assert first.value == pytest.approx((at.completions + 1000) / (2 * at.completions))
    assert first.met


def points(*, slope: float, scale: float = 1.0, noise: Callable[[], float] = lambda: 0.0) -> list[Point]:
    """Evaluations whose odds are (completions / scale / 1000) ^ slope."""
    made: list[Point] = []
    for version in range(1, 21):
        completions = scale * 1500.0 * version
        odds = (completions / scale / 1000) ** slope
        made.append(
            Point(
                version=version,
                completions=completions,
                seconds=completions / 100,
                accuracy=min(0.99, odds / (1 + odds) + noise()),
            )
        )
    return made


def test_every_second_row_of_a_set_is_out_of_reach_and_the_others_are_right() -> None:
    rows = {name: set_of(name) for name in ("sums", "half")}
    wrong = [row["reward_model"]["ground_truth"] == NO_SUM for row in rows["half"]]
    assert wrong == [bool(place % 2) for place in range(PROMPTS)]
    assert [row["prompt"] for row in rows["sums"]] == [row["prompt"] for row in rows["half"]]
    assert all(row["reward_model"]["ground_truth"] == mixadd3.answer(row["prompt"]) for row in rows["sums"])


def test_a_probe_costs_and_keeps_what_a_sum_over_all_outcomes_says() -> None:
    even = Population(name="", teaching=0.5, a=1.0, b=1.0)  # at even pass rates every count of n + 1 is as likely
    found = probe(even, n=8, k=4)
    assert found.acceptance == pytest.approx(0.5 * 7 / 9)
    assert found.kept == pytest.approx((3 / 5) / (7 / 9))
    assert found.cost == pytest.approx((4 / 0.3 + 4) / (8 / (0.5 * 7 / 9)))
    assert found.kept_hard == pytest.approx((1 - 0.1**4 - 0.9**4) / (1 - 0.1**8 - 0.9**8))
    with pytest.raises(ValueError, match="k must be from 2 to n - 1 = 7, got 8"):
        probe(even, n=8, k=8)
