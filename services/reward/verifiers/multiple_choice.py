r"""Grades a choice between letters: 1 when the letter is the ground truth's letter, else 0.

The letter is the one that the marked answer begins with: `B`, `(B)`, `B.`, `**B**`, `$B$`, `\text{B}`, `B) Paris`. Without it,
and without a mark, the letter is the one that the last sentence with an assertion asserts (asserted_letter.py), or a
completion that is nothing but a letter; a marked text without a letter leaves what was said to be the answer before. A
correction behind the mark (`Answer: A. No wait, B.`) goes before it. Thoughts before `</think>` assert nothing.
"""

from dataclasses import dataclass
from typing import Final

from services.reward.asserted_letter import alone, asserted, corrected, leading, said_to_be_the_answer
from services.reward.final_answers import TAIL_CHARS, after_thought, last_marked
from services.reward.ports import Grade, Question

NAME: Final = "multiple_choice"
VERSION: Final = "3"


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
    gold = leading(question.ground_truth, settings.letters)
    if not gold:
        raise ValueError(f"ground_truth: must begin with one of {settings.letters}, got {question.ground_truth[:80]!r}")
    found = _found(text, settings)
    right = found == gold
    return Grade(raw_score=float(right), acc=float(right), extracted=found, status="ok" if found else "unparsed")


def _found(text: str, settings: Settings) -> str:
    """The letter of the last answer; empty without an answer."""
    letters = settings.letters
    if (marked := last_marked(text)) is not None:
        return (
            corrected(marked.rest, letters)
            or leading(marked.answer, letters)
            or asserted(marked.rest, letters)
            or said_to_be_the_answer(marked.before, letters)
        )
    text = after_thought(text)[-TAIL_CHARS:]
    return alone(text, letters) or asserted(text, letters)
