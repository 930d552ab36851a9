"""verl's math_dapo rules, case by case."""

import pytest

from services.reward.ports import Question
from services.reward.verifiers import math_dapo


def grade(text, ground_truth="34", *, finished=True):
    question = Question(data_source="math_dapo", prompt_text="", ground_truth=ground_truth, extra_info={})
    return math_dapo.grade(question=question, text=text, finished=finished)


@pytest.mark.parametrize(
    ("text", "ground_truth"),
    [
        ("Answer: 34", "34"),
        ("So it is\nanswer : 34\n", "34"),
        ("ANSWER:\n34", "34"),
        ("Answer: 12\nWait.\nAnswer: 34", "34"),
        ("Answer: 34\nThat is all there is to say.", "34"),
        ("Answer: $34$", "34"),
        (r"Answer: $\boxed{34}$", "34"),
        (r"Answer: \text{34}", "34"),
        ("Answer: x = 34", "34"),
        ("Answer: 34 degrees", "34"),
        (r"Answer: 34^\circ", "34"),
        ("Answer: 34 square units", "34"),
        ("Answer: 1,234,567", "1234567"),
        (r"Answer: 12{,}034", "12034"),
        ("Answer: -5", "-5"),
        (r"Answer: \frac12", r"\frac{1}{2}"),
        (r"Answer: \sqrt2", r"\sqrt{2}"),
        ("Answer: 50\\%", "50\\%"),
        ("Answer: (1, 2)", "(1,2)"),
        ("Answer: 34", "$34$"),
        ("Answer: the answer is $34$ dollars", "34"),
    ],
)
def test_equal_after_normalisation_scores_plus_one(text, ground_truth):
    verdict = grade(text, ground_truth)
    assert (verdict.raw_score, verdict.acc, verdict.status) == (1.0, 1.0, "ok")


@pytest.mark.parametrize(
    ("text", "ground_truth", "extracted"),
    [
        ("Answer: 35", "34", "35"),
        ("Answer: 34\nAnswer: 35", "34", "35"),
        ("Answer: 0.5", "1/2", "0.5"),
        ("Answer: 5", "-5", "5"),
        ("Answer: 34.", "34", "34."),
        ("Answer: 34.0", "34", "34.0"),
    ],
)
def test_unequal_strings_score_minus_one_even_where_the_numbers_are_equal(text, ground_truth, extracted):
    verdict = grade(text, ground_truth)
    assert (verdict.raw_score, verdict.acc, verdict.status) == (-1.0, 0.0, "ok")
    assert verdict.extracted == extracted


@pytest.mark.parametrize("text", ["", "34", "the result is 34", r"\boxed{34}"])
def test_without_the_marker_the_prediction_is_invalid_and_scores_minus_one(text):
    verdict = grade(text)
    assert (verdict.raw_score, verdict.acc, verdict.extracted) == (-1.0, 0.0, "[INVALID]")
    assert verdict.status == "unparsed"


def test_only_the_last_300_characters_are_looked_at():
    assert grade("Answer: 34\n" + "." * 289).acc == 1.0
    assert grade("Answer: 34\n" + "." * 300).extracted == "[INVALID]"


def test_truncation_alone_is_not_held_against_a_completion():
    assert grade("Answer: 34", finished=False).acc == 1.0


def test_a_ground_truth_that_reads_like_a_missing_answer_is_not_answered_by_silence():
    asked = Question(data_source="", prompt_text="", ground_truth="[INVALID]", extra_info={})
    for strict_box in (False, True):
        settings = math_dapo.Settings(strict_box=strict_box)
        grade = math_dapo.grade(question=asked, text="I do not know.", finished=True, settings=settings)
        assert (grade.raw_score, grade.acc, grade.status) == (-1.0, 0.0, "unparsed")
