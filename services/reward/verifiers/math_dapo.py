r"""Grades maths the way the DAPO reproduction runs did: +1 when the final answer matches, else -1.

Follows verl's `math_dapo` rule for rule, so that scores compare: of the last 300 characters, the text after the last
`Answer:` (any case, up to the end of the line) is normalised and compared as a string with the normalised ground truth;
without an `Answer:` the prediction is `[INVALID]`. Nothing is compared as mathematics: 1/2 is not 0.5, which is harmless
where answers are integers, as in DAPO-Math-17k. No `\boxed{}` fallback: later versions of verl added the fallback, the
published runs did not have it. The normalisation is Minerva's (arXiv:2206.14858, appendix D.1).

`strict_box` is verl's `strict_box_verify`: the content of the last `\boxed{}` of the last 100 characters must be the ground
truth, character by character.
"""

import re
from dataclasses import dataclass
from typing import Final

from services.reward.final_answers import last_boxed
from services.reward.ports import Grade, Question

NAME: Final = "math_dapo"
VERSION: Final = "1"

INVALID: Final = "[INVALID]"

# The longest answer in MATH-500 has 159 characters (verl).
_TAIL_CHARS = 300
_BOX_TAIL_CHARS = 100

_ANSWER = re.compile(r"Answer\s*:\s*([^\n]+)", re.IGNORECASE)

# Order matters in both tables: a later entry sees the text that earlier entries left.
_SUBSTITUTIONS: tuple[tuple[str, str], ...] = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    (r"\$", ""),
    (r"\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (r",\text{and}", ","),
    (r"\text{and}", ","),
    (r"\text{m}", r"\text{}"),
)
_REMOVED: tuple[str, ...] = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", r"\ldots", "sue", "points"),
    *("feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students"),
    *("childrentickets", "multiples", r"\text{s}", r"\text{.}", "\\text{\ns}", r"\text{}^2", r"\text{}^3"),
    *("\\text{\n}", r"\text{}", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"', r"\dots"),
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = (
    # Of text around maths, keep the maths; of wrappers, the content.
    (re.compile(r"(.*?)(\$)(.*?)(\$)(.*)"), r"$\3$"),
    (re.compile(r"(\\text\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\textbf\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\overline\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\boxed\{)(.*)(\})"), r"\2"),
    # TeX shorthand: \fracab is \frac{a}{b}, \sqrta is \sqrt{a}.
    (re.compile(r"(frac)([^{])(.)"), r"frac{\2}{\3}"),
    (re.compile(r"(sqrt)([^{])"), r"sqrt{\2}"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route."""

    strict_box: bool = False


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score +1.0 or -1.0; `unparsed` (and -1.0) without the mark. A truncated completion may be right."""
    if settings.strict_box:
        answer = last_boxed(text[-_BOX_TAIL_CHARS:])
        prediction, gold = INVALID if answer is None else answer, question.ground_truth
    else:
        answers = _ANSWER.findall(text[-_TAIL_CHARS:])
        answer = answers[-1] if answers else None
        prediction, gold = normalise(INVALID if answer is None else answer), normalise(question.ground_truth)
    right = answer is not None and prediction == gold  # a ground truth may be `[INVALID]` too
    return Grade(
        raw_score=1.0 if right else -1.0,
        acc=float(right),
        extracted=prediction,
        status="unparsed" if answer is None else "ok",
    )


def normalise(answer: str) -> str:
    """An answer without units, LaTeX wrappers, blanks and thousands separators; the last side of an equation."""
    answer = answer.split("=")[-1]
    for before, after in _SUBSTITUTIONS:
        answer = answer.replace(before, after)
    for expression in _REMOVED:
        answer = answer.replace(expression, "")
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.replace("$", "")
    without_commas = answer.replace(",", "")
    return (without_commas if without_commas.isdigit() else answer).strip()
