r"""Grades a choice between letters: 1 when the letter is the ground truth's letter, else 0.

The letter is looked for at the start of the marked answer: `B`, `(B)`, `B.`, `**B**`, `\text{B}`, `B) Paris`. Without a
mark the last letter after the word answer, option or choice counts, else a completion that is nothing but a letter.
"""

import re
from dataclasses import dataclass
from typing import Final

from services.reward.answers import TAIL_CHARS, last_marked
from services.reward.ports import Grade, Question

NAME: Final = "multiple_choice"
VERSION: Final = "1"

_AT_START = re.compile(r"(?:[\s$*_(\[]|\\(?:text|textbf|mathrm|mathbf)\{|\\\()*([A-Za-z])(?![A-Za-z0-9'])")
_ALONE = re.compile(r"[(*\[]*([A-Za-z])[)*\].]*")
_AFTER_WORD = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+is\b)?\s*:?\s*[(*\[]*([A-Z])(?![A-Za-z0-9'])", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    letters: str = "ABCDEFGHIJ"
    """The possible choices."""

    def __post_init__(self) -> None:
        """Raises ValueError unless `letters` is a set of letters."""
        if not self.letters.isalpha() or not self.letters.isupper() or len(set(self.letters)) != len(self.letters):
            raise ValueError(f"letters: must be different capital letters, got {self.letters!r}")


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` without a letter. Raises ValueError for a ground truth that is no choice."""
    gold = _choice(_AT_START.match(question.ground_truth), settings)
    if not gold:
        raise ValueError(f"ground_truth: must begin with one of {settings.letters}, got {question.ground_truth[:80]!r}")
    found = _found(text[-TAIL_CHARS:], settings)
    right = found == gold
    return Grade(raw_score=float(right), acc=float(right), extracted=found, status="ok" if found else "unparsed")


def _found(text: str, settings: Settings) -> str:
    """The letter of the last answer; empty without an answer."""
    marked = last_marked(text)
    if marked is not None:
        return _choice(_AT_START.match(marked) or _last(_AFTER_WORD, marked), settings)
    return _choice(_ALONE.fullmatch(text.strip()) or _last(_AFTER_WORD, text), settings)


def _choice(match: re.Match[str] | None, settings: Settings) -> str:
    letter = match[1].upper() if match else ""
    return letter if letter in settings.letters else ""


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    *_, last = None, *pattern.finditer(text)
    return last
