"""Scoring a group without processes: shaping, statuses, the self-check."""

import math

import pytest

from services.reward.ports import Grade, Outcome, Question
from services.reward.routing import Router
from services.reward.scoring import OverlongBuffer, SampleToScore, Scorer
from services.reward.self_check import KNOWN, GoldRow, gold_check
from services.reward.servicer import given_of, samples_of
from sluice.errors import InvalidRequest
from sluice.limits import TEXT_CHARACTERS
from sluice.v1 import common_pb2, reward_pb2
from tests.unit.reward.in_process import InProcess

QUESTION = Question(data_source="mixadd3", prompt_text="67+58=", ground_truth="125", extra_info={})

BUFFER = OverlongBuffer(max_response_length=72, buffer_len=24, penalty_factor=0.5)


def scorer(graders=None, overlong=None, max_answer_chars=1000):
    return Scorer(graders=graders or InProcess(), router=Router(), max_answer_chars=max_answer_chars, overlong=overlong)


def sample(text, response_tokens=10, *, finished=True):
    return SampleToScore(text=text, response_tokens=response_tokens, finished=finished)


async def test_raw_and_shaped_are_apart_and_results_keep_the_order_of_samples():
    samples = [sample("#125", 48), sample("#124", 60), sample("#125", 72), sample("nothing", 10)]
    scored = await scorer(overlong=BUFFER).score(question=QUESTION, samples=samples)
    assert [reward.raw_score for reward in scored.rewards] == [1.0, 0.0, 1.0, 0.0]
    assert [reward.acc for reward in scored.rewards] == [1.0, 0.0, 1.0, 0.0]
    assert [reward.overlong_penalty for reward in scored.rewards] == [0.0, -0.25, -0.5, 0.0]
    assert [reward.shaped_reward for reward in scored.rewards] == [1.0, -0.25, 0.5, 0.0]
    assert [reward.status for reward in scored.rewards] == ["ok", "ok", "ok", "unparsed"]
    assert (scored.grader, scored.grader_version) == ("mixadd3", "1")


async def test_half_of_a_surrogate_pair_in_what_a_grader_returns_becomes_a_question_mark():
    grade = Grade(raw_score=1.0, acc=1.0, extracted="a\ud83d", parts={"b\udcff": 0.5})
    outcomes = {"ok": Outcome(status="ok", grade=grade), "bad": Outcome(status="error", detail="KeyError: '\ud83d'")}
    scored = await scorer(InProcess(outcomes)).score(question=QUESTION, samples=[sample("ok"), sample("bad")])
    good, bad = scored.rewards
    assert (good.extracted, good.parts, bad.detail) == ("a?", {"b?": 0.5}, "KeyError: '?'")


async def test_without_a_buffer_nothing_is_shaped():
    scored = await scorer().score(question=QUESTION, samples=[sample("#125", 10_000)])
    assert scored.rewards[0].overlong_penalty == 0.0


async def test_what_could_not_be_graded_has_no_score_at_all():
    failing = {"hang": Outcome(status="timeout", detail="10 s"), "raise": Outcome(status="error", detail="why")}
    samples = [sample("hang"), sample("#125"), sample("raise")]
    scored = await scorer(InProcess(failing), overlong=BUFFER).score(question=QUESTION, samples=samples)
    assert [reward.status for reward in scored.rewards] == ["timeout", "ok", "error"]
    assert [reward.detail for reward in scored.rewards] == ["10 s", "", "why"]
    for reward in (scored.rewards[0], scored.rewards[2]):
        assert all(math.isnan(value) for value in (reward.raw_score, reward.acc, reward.shaped_reward))


@pytest.mark.parametrize("score", [1e300, -1e16, math.inf, math.nan])
@pytest.mark.parametrize("field", ["raw_score", "acc", "part"])
async def test_a_score_whose_square_is_no_number_is_an_error_of_the_sample(field, score):
    scores = {"raw_score": 1.0, "acc": 1.0} | ({} if field == "part" else {field: score})
    parts = {"style": score} if field == "part" else {}
    outcome = Outcome(status="ok", grade=Grade(**scores, extracted="", parts=parts))
    scored = await scorer(InProcess({"huge": outcome})).score(question=QUESTION, samples=[sample("huge")])
    assert scored.rewards[0].status == "error"
    assert "scores must be finite and at most 1e+15" in scored.rewards[0].detail


async def test_texts_of_a_grade_are_cut_at_what_the_coordinator_takes():
    long = Outcome(status="ok", grade=Grade(raw_score=1.0, acc=1.0, extracted="x" * 100_000))
    late = Outcome(status="error", detail="y" * 100_000)
    graders = InProcess({"long": long, "late": late})
    scored = await scorer(graders).score(question=QUESTION, samples=[sample("long"), sample("late")])
    assert [len(scored.rewards[0].extracted), len(scored.rewards[1].detail)] == [TEXT_CHARACTERS, TEXT_CHARACTERS]


async def test_a_completion_over_the_limit_is_an_error_and_never_grades_as_wrong_or_right():
    graders = InProcess()
    samples = [sample("#125"), sample("15#125"), sample("515#125")]
    scored = await scorer(graders, max_answer_chars=6).score(question=QUESTION, samples=samples)
    assert [reward.status for reward in scored.rewards] == ["ok", "ok", "error"]
    assert scored.rewards[2].detail == "completion of 7 characters, over reward.max_answer_chars (6)"
    assert math.isnan(scored.rewards[2].raw_score)
    assert [len(completion.text) for completion in graders.jobs[0].completions] == [4, 6, 6]


async def test_an_unknown_data_source_grades_nothing():
    graders = InProcess()
    unknown = Question(data_source="poetry", prompt_text="", ground_truth="", extra_info={})
    with pytest.raises(ValueError, match="no verifier for 'poetry'"):
        await scorer(graders).score(question=unknown, samples=[sample("#125")])
    assert not graders.jobs


async def test_the_known_answers_pass_the_self_check():
    assert await gold_check(KNOWN, scorer()) == []


async def test_the_self_check_finds_a_prompt_that_asks_for_another_format_than_the_verifier_reads():
    problems = await gold_check([GoldRow(question=QUESTION, gold_text="The sum is 125.")], scorer())
    assert len(problems) == 1
    assert "must have acc 1, got 0 (unparsed, ground truth '125'" in problems[0]


async def test_the_self_check_finds_a_verifier_that_likes_garbage():
    likes_nothing = Question(data_source="mixadd3", prompt_text="", ground_truth="?", extra_info={})
    problems = await gold_check([GoldRow(question=likes_nothing, gold_text="#?")], scorer())
    assert ["must have acc 0, got 1" in problem for problem in problems] == [True]


def test_the_verdicts_of_an_environment_are_shaped_and_no_grader_is_asked():
    request = reward_pb2.ScoreRequest(data_source="nobody's", environment="guess")
    for tokens, score in ((100, 1.0), (90, 0.0), (2, math.nan)):
        given = common_pb2.EpisodeScore(score=score, acc=score, parts={"guesses": 2.0}, extracted="7")
        request.items.add(response_tokens=tokens, finish_reason=common_pb2.FINISH_REASON_STOP, given=given)
    buffer = OverlongBuffer(max_response_length=100, buffer_len=20, penalty_factor=1.0)
    given = given_of(request)
    assert given is not None
    scored = scorer(overlong=buffer).shape(samples_of(request), given, environment=request.environment, version="3")
    full, half, odd = scored.rewards
    assert (full.raw_score, full.shaped_reward, full.acc, full.extracted, full.parts) == (
        1.0,
        0.0,
        1.0,
        "7",
        {"guesses": 2.0},
    )
    assert half.shaped_reward == -0.5
    assert (odd.status, scored.grader, scored.grader_version) == ("error", "environment:guess", "3")
    request.items[1].ClearField("given")
    with pytest.raises(InvalidRequest, match=r"items\[1\].given: must be set"):
        given_of(request)
    for item in request.items:
        item.ClearField("given")
    assert given_of(request) is None
