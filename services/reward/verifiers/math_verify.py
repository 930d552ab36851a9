r"""Grades maths as maths, with the math-verify package: 1 when the answer equals the ground truth symbolically, else 0.

1/2 is 0.5, {1, 2} is {2, 1}, x = 5 is 5. The package finds the answer: `final answer is`, `\boxed{}`, LaTeX in dollars,
`Answer:`, else the last expression or number anywhere. So every format is forgiven, and a completion that ends with the
right number by chance is right. Thoughts, up to the last `</think>`, hold no answer; the package would take the boxes in them
for further answers. The ground truth is read as the content of a `\boxed{}`. Digits of other scripts count as
digits (`١٢` is 12); the package alone finds such digits and then fails to read them.

The package's own time limits are off, because they answer "wrong" where nothing was decided. A comparison that takes too
long is killed from outside and is a `timeout`. Where sympy refuses to compare, as with 1/0, equal text is right and other
text is wrong: the ground truth was read, so the answer decides.
"""

import logging
import unicodedata
from typing import Any, Final

from services.reward.final_answers import TAIL_CHARS, after_thought
from services.reward.ports import Grade, Question

NAME: Final = "math_verify"


def __getattr__(name: str) -> str:
    """VERSION: the package's version and the version of what this module changes, looked up late: the package is optional."""
    if name == "VERSION":
        import importlib.metadata

        return f"{importlib.metadata.version('math-verify')}+digits.2"
    raise AttributeError(name)


def prepare() -> None:
    """Imports sympy and builds the grammars of LaTeX and of text, which takes a second."""
    import math_verify

    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)  # the package warns that its limits are off
    for text in ("$\\boxed{1}$", "1"):
        _parse(text)


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` when the package finds nothing.

    Raises ValueError for a ground truth that the package cannot read.
    """
    gold = _parse(f"\\boxed{{{question.ground_truth}}}")
    if not gold:
        raise ValueError(f"ground_truth: must be an expression, got {question.ground_truth[:80]!r}")
    answer = _parse(after_thought(text)[-TAIL_CHARS:])
    if not answer:
        return Grade(raw_score=0.0, acc=0.0, extracted="", status="unparsed")
    right = _equal(gold, answer)
    return Grade(raw_score=float(right), acc=float(right), extracted=_found(answer))


def _parse(text: str) -> list[Any]:
    """The expression that the package found, and the expression's text; empty for a text that the package cannot read."""
    import math_verify

    text = "".join(_ascii_digit(character) for character in text)
    return math_verify.parse(text, parsing_timeout=None)  # pyrefly: ignore[bad-argument-type]


def _equal(gold: list[Any], answer: list[Any]) -> bool:
    """Whether both are the same mathematically; as text, where sympy raises."""
    import math_verify

    try:
        return math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    except Exception:  # noqa: BLE001 - sympy raises anything for expressions that it cannot compare
        return _found(gold).strip() == _found(answer).strip() != ""


def _ascii_digit(character: str) -> str:
    """The ASCII form of any decimal digit; every other character unchanged, also circled and raised digits."""
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _found(answer: list[Any]) -> str:
    """The text of the answer, not a printed expression, because printing an expression could take for ever."""
    return next((part for part in answer if isinstance(part, str)), "")
