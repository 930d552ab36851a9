"""Grades by equality of text: 1 when the answer is the ground truth, else 0.

Blanks and characters of no width around the answer, runs of blanks, the way Unicode composes an accent (NFC), and behind
`Answer:` the punctuation that ends the line do not count, nor bold, italics and code around the answer unless the ground truth
has them; everything else does.
"""

import unicodedata
from dataclasses import dataclass
from typing import Final

from services.reward.final_answers import SENTENCE_END, Form, find, marked_line
from services.reward.ports import Grade, Question

NAME: Final = "exact"
VERSION: Final = "3"

_NO_WIDTH: Final = "\u200b\u2060\ufeff \n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    answer_in: Form = "any"
    ignore_case: bool = False


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` without an answer."""
    found = find(text, settings.answer_in)
    if not found:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    readings = {found}
    if found == find(text, "line"):
        readings |= {found.rstrip(SENTENCE_END), marked_line(text)}  # the ground truth may have the markup: __init__
    right = _plain(question.ground_truth, settings) in {_plain(reading, settings) for reading in readings}
    return Grade(raw_score=float(right), acc=float(right), extracted=found)


def _plain(text: str, settings: Settings) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).strip(_NO_WIDTH).split())
    return text.casefold() if settings.ignore_case else text
