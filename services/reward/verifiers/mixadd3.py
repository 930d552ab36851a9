"""Grades the demo task: 1 when the text after the last `#` is the sum and the end token was produced, else 0."""

from typing import Final

from services.reward.ports import Grade, Question
from sluice.tasks import mixadd3

NAME: Final = "mixadd3"
VERSION: Final = "1"


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` without a `#`."""
    right, found = mixadd3.verify(ground_truth=question.ground_truth, completion=text, finished=finished)
    status = "unparsed" if found is None else "ok"
    return Grade(raw_score=float(right), acc=float(right), extracted=found or "", status=status)
