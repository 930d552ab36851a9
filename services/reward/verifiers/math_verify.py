r"""Grades maths as maths, with the math-verify package: 1 when the answer equals the ground truth symbolically, else 0.

1/2 is 0.5, {1, 2} is {2, 1}, x = 5 is 5. The answer is what the package finds: `final answer is`, `\boxed{}`, LaTeX in
dollars, `Answer:`, else the last expression or number anywhere. So it forgives every format, and a completion that ends
with the right number by chance is right. The ground truth is read as if it stood in a `\boxed{}`. Digits of other scripts
are the digits that they are (`١٢` is 12): the package finds them, and then fails to read them.

The package's own time limits are off: they answer "wrong" where nothing was decided. What takes too long is killed from
outside and is a `timeout`; what sympy cannot compare is an `error`.
"""

import logging
import unicodedata
from typing import Any, Final

from services.reward.answers import TAIL_CHARS
from services.reward.ports import Grade, Question

NAME: Final = "math_verify"


def __getattr__(name: str) -> str:
    """VERSION is the package's and our change to what it reads, looked up on use: the package is an optional dependency."""
    if name == "VERSION":
        import importlib.metadata

        return f"{importlib.metadata.version('math-verify')}+digits"
    raise AttributeError(name)


def prepare() -> None:
    """Imports sympy and builds the grammars of LaTeX and of texts, which takes a second."""
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)  # it warns that its limits are off
    for text in ("$\\boxed{1}$", "1"):
        _parse(text)


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` when the package finds nothing.

    Raises ValueError for a ground truth that it cannot read, and what sympy raises when it cannot compare.
    """
    import math_verify

    gold = _parse(f"\\boxed{{{question.ground_truth}}}")
    if not gold:
        raise ValueError(f"ground_truth: must be an expression, got {question.ground_truth[:80]!r}")
    answer = _parse(text[-TAIL_CHARS:])
    if not answer:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    right = math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    return Grade(raw_score=float(right), acc=float(right), extracted=_found(answer))


def _parse(text: str) -> list[Any]:
    """The expression found, and its text."""
    import math_verify

    text = "".join(_ascii_digit(character) for character in text)
    return math_verify.parse(text, parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]


def _ascii_digit(character: str) -> str:
    """Of any decimal digit; every other character as it is, circled and raised digits included."""
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _found(answer: list[Any]) -> str:
    """The text of the answer; printing an expression could take for ever."""
    return next((part for part in answer if isinstance(part, str)), "")
