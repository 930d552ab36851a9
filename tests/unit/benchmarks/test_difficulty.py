"""The figures of two benchmarks about waste: a curve of accuracy, and what a probe of a group's first samples would do."""

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


def test_a_level_is_reached_on_the_line_between_smoothed_evaluations() -> None:
    points = curve(LINES, n=8, before=100)  # type: ignore[arg-type]
    assert points == [
        Point(version=1, completions=420.0, seconds=10.0, accuracy=0.5),
        Point(version=2, completions=580.0, seconds=20.0, accuracy=0.7),
    ]
    assert reached(points, 0.6) == (420.0, 10.0), "the mean of both is .6 at both"
    third = Point(version=3, completions=900.0, seconds=30.0, accuracy=1.0)
    assert reached([*points, third], 0.7) == pytest.approx(
        (420 + 160 * 0.1 / (2.2 / 3 - 0.6), 10 + 10 * 0.1 / (2.2 / 3 - 0.6))
    )
    assert reached(points, 0.9) is None
    rows = {row.what: row for row in compared("a", "difficulty", points, [*points, third])}
    assert rows["a: completions to 0.6, difficulty / shuffle"].value == 1.0
    assert [row.met for row in rows.values()] == [True, False], (
        "the last evaluation of the shorter run has no neighbour"
    )


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
