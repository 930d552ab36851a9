"""Grades GSM8K answers the way verl's `gsm8k` does: 1 when the number found equals the ground truth as a string, else 0.

`strict` reads the last `#### NUMBER` of the last 300 characters and drops the thousands separators; `flexible` takes the
last number of any kind in these characters, with its commas. Nothing is compared as a number: 18.0 is not 18.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from services.reward.ports import Grade, Question

NAME: Final = "gsm8k"
VERSION: Final = "1"

_TAIL_CHARS = 300
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(\-?[0-9\.\,]+)")
_NO_NUMBERS = ("", ".")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    method: Literal["strict", "flexible"] = "strict"
    format_score: float = 0.0
    """Raw score of a wrong number in the right place (verl's name)."""


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score 1.0, `format_score` or 0.0; `unparsed` (and 0.0) without a number."""
    found = _strict(text) if settings.method == "strict" else _flexible(text)
    if found is None:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    right = found == question.ground_truth
    return Grade(raw_score=1.0 if right else settings.format_score, acc=float(right), extracted=found)


def _strict(text: str) -> str | None:
    numbers = _STRICT.findall(text[-_TAIL_CHARS:])
    return numbers[-1].replace(",", "") if numbers else None


def _flexible(text: str) -> str | None:
    """The last match that is not just a full stop; else the first match, as in verl."""
    numbers = _FLEXIBLE.findall(text[-_TAIL_CHARS:])
    for number in reversed(numbers):
        if number not in _NO_NUMBERS:
            return number
    return numbers[0] if numbers else None
