"""Every grader says of every case of the corpus what the corpus expects of it."""

import pytest

from services.reward.ports import Completion, Question
from services.reward.sandbox.loading import Asked
from services.reward.verifiers import code, multiple_choice
from tests.unit.reward.corpus.cases import GRADERS, read_cases, read_choices, read_programs

CASES = read_cases()
KILLED = "T"
"""The verdict on what only the service's wall clock ends; test_reward_graders.py has it killed."""


def verdict_of(asked, case, grader):
    question = Question(data_source="", prompt_text="", ground_truth=case.gold, extra_info={})
    reply = asked.about(question, Completion(text=case.completion(grader), finished=True))
    if "error" in reply:
        return "-" if reply["error"].startswith("ValueError: ground_truth: must be") else reply["error"]
    grade = reply["grade"]
    assert grade["acc"] in (0.0, 1.0)
    assert (grade["raw_score"] == 1.0) == (grade["acc"] == 1.0)
    if grade["status"] == "unparsed":
        assert grade["acc"] == 0.0
        return "U"
    return "R" if grade["acc"] else "W"


SLOW = {"math_verify"}
"""Seconds for the corpus, most of it in the LaTeX grammar."""


@pytest.mark.parametrize(
    "grader", [pytest.param(name, marks=[pytest.mark.integration] * (name in SLOW)) for name in GRADERS]
)
def test_a_grader_judges_the_corpus_as_expected(grader):
    asked = Asked(f"services.reward.verifiers.{GRADERS[grader].verifier}", GRADERS[grader].settings)
    differing = [
        f"{case.gold!r} <- {case.text[:60]!r} ({case.why}): {found}, expected {case.verdict(grader)}"
        for case in CASES
        if case.verdict(grader) != KILLED and (found := verdict_of(asked, case, grader)) != case.verdict(grader)
    ]
    assert not differing, "\n".join(differing)


def test_multiple_choice_takes_the_letter_that_a_completion_asserts():
    differing = []
    for case in read_choices():
        for gold in "ABI":
            question = Question(data_source="", prompt_text="", ground_truth=gold, extra_info={})
            grade = multiple_choice.grade(question=question, text=case.completion, finished=True)
            expected = (case.asserts, float(case.asserts == gold), "ok" if case.asserts else "unparsed")
            if (grade.extracted, grade.acc, grade.status) != expected:
                differing.append(f"{case.completion!r} ({case.why}): {grade.extracted!r}, expected {case.asserts!r}")
    assert not differing, "\n".join(differing)


@pytest.mark.integration
@pytest.mark.parametrize("case", read_programs(), ids=lambda case: case.why)
def test_a_program_passes_as_the_corpus_says(case):
    question = Question(data_source="", prompt_text="", ground_truth=case.ground_truth, extra_info={})
    limits = code.Settings(cpu_s=10.0 if case.passes else 1.0, wall_s=60.0)
    assert code.grade(question=question, text=case.completion, finished=True, settings=limits).acc == float(case.passes)


def test_the_corpus_is_whole():
    assert len(CASES) > 400
    assert len({(case.is_answer, case.gold, case.text) for case in CASES}) == len(CASES)
    assert {case.truth for case in CASES} == {"right", "wrong", "ambiguous"}
    assert all(case.why for case in (*CASES, *read_choices(), *read_programs()))
    assert all(len(case.verdicts) == len(GRADERS) and set(case.verdicts) <= set("RWU-T") for case in CASES)
