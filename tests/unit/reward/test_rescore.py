"""Scores of before and after, side by side: what counts as a change, and what dynamic sampling would make of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from services.reward.rescore.result_page import EXAMPLES, as_json, page
from services.reward.rescore.score_comparison import Comparison, Judged, ScoredAgain, term
from sluice.config.schema import FilterGroupsConfig

ON, OFF = FilterGroupsConfig(), FilterGroupsConfig(enable=False)
NAN = float("nan")


def judged(
    acc: float, *, raw: float | None = None, status: str = "ok", grader: str = "old 1", **more: object
) -> Judged:
    facts = {"status": status, "raw_score": acc if raw is None else raw, "acc": acc, "grader": grader}
    return Judged(**{"shaped_reward": facts["raw_score"], "extracted": "", "detail": "", **facts, **more})


def failed(status: str = "timeout") -> Judged:
    return judged(NAN, status=status, grader="new 2", detail="not graded within 10 s")


def compared(*groups: tuple[list[Judged], list[Judged]], after: FilterGroupsConfig = ON) -> Comparison:
    comparison = Comparison(filters_before=ON, filters_after=after)
    for number, (before, now) in enumerate(groups):
        samples = list(range(len(before)))
        comparison.add(
            ScoredAgain(step=7, group_id=f"g{number}", ground_truth="2", samples=samples, before=before, after=now)
        )
    return comparison


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (judged(1.0), "right"),
        (judged(0.0), "wrong"),
        (judged(0.5), "partly right"),
        (judged(0.0, status="unparsed"), "unparsed"),
        (failed("error"), "error"),
        (failed("timeout"), "timeout"),
    ],
)
def test_every_judgement_has_a_verdict(one: Judged, verdict: str) -> None:
    assert one.verdict == verdict


def test_changes_are_counted_by_verdict_and_a_score_alone_apart() -> None:
    before = [judged(1.0), judged(0.0), judged(0.0), judged(0.0, status="unparsed")]
    after = [judged(1.0, raw=0.5), judged(1.0), judged(0.0), failed()]
    comparison = compared((before, after))
    assert comparison.verdicts == {
        ("right", "right"): 1,
        ("wrong", "right"): 1,
        ("wrong", "wrong"): 1,
        ("unparsed", "timeout"): 1,
    }
    assert comparison.rescored_alone == 1
    assert [one.sample for one in comparison.changed_samples] == [1, 3]


def test_means_are_over_the_samples_that_were_graded_both_times() -> None:
    comparison = compared(([judged(1.0), judged(0.0)], [judged(0.0, raw=-1.0), failed()]))
    assert comparison.graded_twice == 1
    assert comparison.means() == {"raw_score": (1.0, -1.0), "acc": (1.0, 0.0), "shaped_reward": (1.0, -1.0)}
    assert compared(([judged(1.0)], [failed()])).means() == {}


@pytest.mark.parametrize(
    ("after", "filters", "expected"),
    [
        ([judged(1.0), judged(0.0)], ON, "kept"),
        ([judged(1.0), judged(1.0)], ON, "filtered_all_right"),
        ([judged(0.0), judged(0.0, status="unparsed")], ON, "filtered_all_wrong"),
        ([judged(0.5), judged(0.5)], ON, "filtered_other"),
        ([judged(1.0), judged(1.0)], OFF, "kept"),
        ([judged(1.0, raw=0.9), judged(1.0)], FilterGroupsConfig(metric="score"), "kept"),
        ([judged(1.0), failed()], OFF, "failed"),
    ],
)
def test_a_group_ends_as_dynamic_sampling_decides(
    after: list[Judged], filters: FilterGroupsConfig, expected: str
) -> None:
    assert term(after, filters) == expected
    (pair,) = compared(([judged(1.0), judged(0.0)], after), after=filters).terms
    assert pair == ("kept", expected)


def test_nothing_is_graded_until_one_sample_is() -> None:
    comparison = compared(([judged(1.0)], [failed("error")]))
    assert comparison.nothing_graded
    comparison.add(
        ScoredAgain(step=0, group_id="g", ground_truth="", samples=[0], before=[judged(1.0)], after=[judged(0.0)])
    )
    assert not comparison.nothing_graded


def shown(comparison: Comparison, missing: Counter[str]) -> str:
    return page(comparison, run_dir=Path("run"), steps=[7, 8], missing=missing)


def test_the_page_says_what_was_covered_what_changed_and_shows_a_few() -> None:
    changed = (
        [judged(0.0, extracted="1/2"), judged(1.0)],
        [judged(1.0, extracted="\x1b[2J0.5", grader="new 2"), judged(1.0, grader="new 2")],
    )
    text = shown(compared(*[changed] * (EXAMPLES + 2)), Counter({"filtered_all_wrong": 30, "trained": 8}))
    for part in (
        "run: 10 samples of 5 groups scored again (2 batches, steps 7 to 8)",
        "not covered, no texts are kept of them: 30 filtered_all_wrong, 8 trained",
        "verdicts: 5 of 10 samples changed; 5 did not",
        "wrong -> right: 5",
        "dynamic sampling: 5 of 5 groups would have ended otherwise",
        "kept -> filtered_all_right: 5 (g0, g1, g2, g3, g4)",
    ):
        assert part in text, part
    lines = [line.split() for line in text.splitlines()]
    assert ["before", "10", "old", "1"] in lines
    assert ["after", "10", "new", "2"] in lines
    assert ["raw_score", "0.5", "1"] in lines
    examples = [line for line in text.splitlines() if "ground truth" in line]
    assert len(examples) == EXAMPLES
    assert examples[0].strip().startswith("g0 sample 0: '1/2' -> ")
    assert "\x1b" not in text


def test_a_change_to_what_could_not_be_graded_shows_why() -> None:
    text = shown(compared(([judged(1.0, extracted="2"), judged(0.0)], [failed(), judged(0.0)])), Counter())
    assert "g0 sample 0: '2' -> 'not graded within 10 s'" in text
    assert "kept -> failed: 1 (g0)" in text
    assert "not covered" not in text


def test_the_json_has_every_change_and_no_nan() -> None:
    comparison = compared(*[([judged(1.0), judged(0.0)], [failed(), judged(0.0)])] * 20)
    figures = as_json(comparison, run_dir=Path("run"), steps=[7], missing=Counter(trained=3))
    figures = json.loads(json.dumps(figures, allow_nan=False))
    assert (figures["samples"], figures["groups"], figures["not_covered"]) == (40, 20, {"trained": 3})
    assert len(figures["changed_samples"]) == len(figures["changed_groups"]) == 20
    one = figures["changed_samples"][0]
    assert (one["before"]["verdict"], one["after"]["verdict"], one["after"]["raw_score"]) == ("right", "timeout", None)
    assert figures["verdicts"][0] == {"before": "right", "after": "timeout", "count": 20}
    assert figures["dynamic_sampling"] == [{"before": "kept", "after": "failed", "count": 20}]
