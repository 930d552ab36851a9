"""Every maths grader says of every case of the corpus what the corpus expects of it."""

import pytest

from services.reward.ports import Completion, Question
from services.reward.sandbox.loading import Asked
from tests.unit.reward.corpus.cases import GRADERS, read_cases

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


def test_the_corpus_is_whole():
    assert len(CASES) > 400
    assert len({(case.is_answer, case.gold, case.text) for case in CASES}) == len(CASES)
    assert {case.truth for case in CASES} == {"right", "wrong", "ambiguous"}
    assert all(case.why for case in CASES)
    assert all(len(case.verdicts) == len(GRADERS) and set(case.verdicts) <= set("RWU-T") for case in CASES)
