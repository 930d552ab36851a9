r"""The corpus: answers and whole completions, each with what is true of it, why, and the verdict of every maths grader.

A line of answers.jsonl is an answer to `gold`; every grader gets it in the form that it reads (`FORMS`). A line of
completions.jsonl is a completion, the same for all graders. `truth` is what a careful person would say: `right`, `wrong`
or `ambiguous`. `verdicts` are the graders' in the order of `GRADERS`: R right, W wrong, U wrong because unparsed, and `-`
where the ground truth is nothing that the grader can read. A text is a string, or a list of [piece, times].
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Grader:
    """A built-in grader with settings."""

    verifier: str
    settings: Mapping[str, object]
    form: str
    """What an answer is put into."""


GRADERS = {
    "math_dapo": Grader(verifier="math_dapo", settings={}, form="Answer: {}"),
    "strict_box": Grader(verifier="math_dapo", settings={"strict_box": True}, form="\\boxed{{{}}}"),
    "math_verify": Grader(verifier="math_verify", settings={}, form="\\boxed{{{}}}"),
    "gsm8k": Grader(verifier="gsm8k", settings={}, form="#### {}"),
    "gsm8k flexible": Grader(verifier="gsm8k", settings={"method": "flexible"}, form="{}"),
    "exact": Grader(verifier="exact", settings={}, form="<answer>{}</answer>"),
    "numeric": Grader(verifier="numeric", settings={}, form="<answer>{}</answer>"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One line of a file."""

    category: str
    gold: str
    text: str
    """The answer, or the completion."""
    is_answer: bool
    truth: str
    why: str
    verdicts: str

    def completion(self, grader: str) -> str:
        """What the grader is given."""
        return GRADERS[grader].form.format(self.text) if self.is_answer else self.text

    def verdict(self, grader: str) -> str:
        """The one expected of the grader."""
        return self.verdicts[list(GRADERS).index(grader)]


def read_cases() -> list[Case]:
    """All of the corpus, in its order."""
    return [*_read("answers.jsonl", "answer"), *_read("completions.jsonl", "completion")]


def _read(name: str, column: str) -> list[Case]:
    lines = (FOLDER / name).read_text(encoding="utf-8").split("\n")
    return [_case(json.loads(line), column) for line in lines if line]


def _case(row: dict, column: str) -> Case:
    text = row[column]
    return Case(
        category=row["category"],
        gold=row["gold"],
        text=text if isinstance(text, str) else "".join(piece * times for piece, times in text),
        is_answer=column == "answer",
        truth=row["truth"],
        why=row["why"],
        verdicts=row["verdicts"],
    )
