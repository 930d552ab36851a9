"""Several graders on one data source: weights, parts, and what is not graded."""

import pytest

from services.reward.ports import Grade, Outcome, Question
from services.reward.routing import Part, Router
from services.reward.scoring import SampleToScore, Scorer, combine
from sluice.config.schema import GraderConfig, RewardConfig
from tests.unit.reward.in_process import InProcess

PARTS = (Part(name="right", verifier="a.b", weight=2.0), Part(name="form", verifier="c.d", weight=-0.5))


def graded(raw_score, acc, status="ok", **parts):
    grade = Grade(raw_score=raw_score, acc=acc, extracted=f"{raw_score}", status=status, parts=parts)
    return Outcome(status=status, grade=grade)


def test_scores_are_summed_by_weight_and_the_first_decides_what_is_right():
    outcome = combine(PARTS, [graded(0.5, 0.0, "unparsed", passed=0.25), graded(1.0, 1.0)])
    assert outcome.status == "unparsed"
    assert (outcome.grade.raw_score, outcome.grade.acc, outcome.grade.extracted) == (0.5, 0.0, "0.5")
    assert outcome.grade.parts == {"right": 0.5, "right.passed": 0.25, "form": 1.0}


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_part_that_could_not_be_graded_leaves_the_sample_ungraded(status):
    failed = Outcome(status=status, detail="why")
    for outcomes in ([graded(1.0, 1.0), failed], [failed, graded(1.0, 1.0)]):
        outcome = combine(PARTS, outcomes)
        assert (outcome.status, outcome.grade) == (status, None)
        assert outcome.detail.endswith(": why")


async def test_a_route_of_two_graders_scores_a_group():
    route = [
        GraderConfig(grader="math_dapo"),
        GraderConfig(grader="format", settings={"pattern": "^So"}, weight=0.5, name="opening"),
    ]
    scorer = Scorer(graders=InProcess(), router=Router({"mine": route}), max_answer_chars=1000, overlong=None)
    question = Question(data_source="mine", prompt_text="", ground_truth="34", extra_info={})
    texts = ("So\nAnswer: 34", "Answer: 34", "So\nAnswer: 35")
    samples = [SampleToScore(text=text, response_tokens=5, finished=True) for text in texts]
    scored = await scorer.score(question=question, samples=samples)
    assert (scored.grader, scored.grader_version) == ("math_dapo+opening", "1+1")
    assert [reward.raw_score for reward in scored.rewards] == [1.5, 1.0, -0.5]
    assert [reward.acc for reward in scored.rewards] == [1.0, 1.0, 0.0]
    assert [reward.parts for reward in scored.rewards] == [
        {"math_dapo": 1.0, "opening": 1.0},
        {"math_dapo": 1.0, "opening": 0.0},
        {"math_dapo": -1.0, "opening": 1.0},
    ]


@pytest.mark.parametrize(
    ("route", "message"),
    [
        (GraderConfig(grader="numeric", settings={"tolerance": 1}), "numeric has no setting 'tolerance'; it has"),
        (GraderConfig(grader="numeric", settings={"rel_tol": -1}), r"rel_tol: must be >= 0, got -1\.0"),
        (GraderConfig(grader="numeric", settings={"rel_tol": "x"}), r"settings\.rel_tol: .*got 'x'"),
        (GraderConfig(grader="format"), "pattern or tags: one must be given"),
        (GraderConfig(grader="format", settings={"pattern": "("}), "pattern: must be a regular expression"),
        (GraderConfig(grader="judge", settings={"url": "x", "model": "m"}), "url: must be http://HOST"),
        (GraderConfig(grader="mixadd3", settings={"a": 1}), "mixadd3 takes no settings, got a"),
        ([GraderConfig(grader="exact"), GraderConfig(grader="exact")], "'exact' twice; set `name`"),
        ([], "must name at least one grader"),
        ("nowhere.py:score", "nowhere.py is not a file"),
        ("mine.py", "needs a function: `mine.py:compute_score`"),
        ("package:", "`file.py:function`"),
    ],
)
def test_a_route_that_cannot_grade_is_refused_before_anything_is_graded(route, message):
    with pytest.raises(ValueError, match=rf"reward\.routes\.mine: .*{message}"):
        Router({"mine": route})


def test_a_star_takes_every_data_source():
    router = Router({"*": "exact"})
    assert [part.name for part in router.parts_of("anything")] == ["exact"]


def test_a_recipe_names_a_grader_by_name_by_section_or_by_list():
    routes = {
        "a": "exact",
        "b": {"grader": "numeric", "settings": {"rel_tol": 0.1}},
        "c": ["exact", {"grader": "numeric"}],
    }
    router = Router(RewardConfig.model_validate({"routes": routes}).routes)
    assert [[part.name for part in router.parts_of(key)] for key in routes] == [
        ["exact"],
        ["numeric"],
        ["exact", "numeric"],
    ]
    assert router.parts_of("b")[0].settings["rel_tol"] == 0.1


@pytest.mark.parametrize("route", [3, [], {}, {"grader": ""}, {"grader": "exact", "weihgt": 1}, [["exact"]]])
def test_a_recipe_with_a_route_that_is_none_is_refused(route):
    with pytest.raises(ValueError, match=r"routes\.mine"):
        RewardConfig.model_validate({"routes": {"mine": route}})
