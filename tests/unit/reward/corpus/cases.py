r"""The corpus: answers and whole completions, each with what is true of it, why, and the verdict of every maths grader.

A line of answers.jsonl is an answer to `gold`; every grader gets it in the form that it reads (`FORMS`). A line of
completions.jsonl is a completion, the same for all graders. `truth` is what a careful person would say: `right`, `wrong`
or `ambiguous`. `verdicts` are the graders' in the order of `GRADERS`: R right, W wrong, U wrong because unparsed, and `-`
where the ground truth is nothing that the grader can read. A text is a string, or a list of [piece, times].

A line of choices.jsonl is a completion and the letter that it asserts, empty for none. A line of programs.jsonl is a ground
truth of the code grader, a completion, and whether it passes.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One line of choices.jsonl."""

    completion: str
    asserts: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """One line of programs.jsonl."""

    ground_truth: str
    completion: str
    passes: bool
    why: str


def read_choices() -> list[Choice]:
    """The choices, in their order."""
    return [Choice(**row) for row in _rows("choices.jsonl")]


def read_programs() -> list[Program]:
    """The programs, in their order."""
    return [Program(**row) for row in _rows("programs.jsonl")]


def read_cases() -> list[Case]:
    """All of the corpus, in its order."""
    return [*_read("answers.jsonl", "answer"), *_read("completions.jsonl", "completion")]


def _read(name: str, column: str) -> list[Case]:
    return [_case(row, column) for row in _rows(name)]


def _rows(name: str) -> list[dict]:
    lines = (FOLDER / name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


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
