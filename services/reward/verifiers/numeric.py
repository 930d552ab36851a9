r"""Grades numbers as numbers: 1 when the answer is within tolerance of the ground truth, else 0.

Understands signs, thousands separators (1,234 and 1 234), decimals, 1e3, 10^{3} and 1.5 \times 10^{3}, fractions (3/4, \frac34,
½), mixed numbers (2 1/2), percent (50% is 0.5), a currency before and a unit after, quotes around. Does not understand 3,14,
roots, \pi or words. Values are exact fractions up to the comparison. A ground truth that is no number is an error, never a
wrong answer.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from services.reward.final_answers import SENTENCE_END, UNSEEN, Form, find
from services.reward.ports import Grade, Question

NAME: Final = "numeric"
VERSION: Final = "3"

_LONGEST = 200
"""Most characters of a number: a longer number is no answer, and the limit bounds the work of exact arithmetic."""
_LARGEST_EXPONENT = 400

_DEFAULT_REL = Fraction(1, 10**6)

_LATEX_BLANK = re.compile(r"\\[,;:! ]|\\(?:left|right|displaystyle|quad)(?![A-Za-z])|~|\{,\}(?=\d{3})|[$]|\\[()\[\]]")
_QUOTES: Final = "\"'\u201c\u201d\u2018\u2019\u300c\u300d"
_TEXT = re.compile(r"\\(?:text|textbf|textit|emph|mathrm|mathbf|mbox|operatorname|boxed)\{([^{}]*)\}")
_CHARACTERS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-", "＋": "+", "⁄": "/", "∕": "/", "÷": "/", "×": "*",
                             "％": "%", "．": ".", "，": ",", "\u00a0": " ", "\u2009": " ", "\u202f": " "})  # fmt: skip

_UNSIGNED = (
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?|\d+\.?\d*|\.\d+)"
)
_SIGN = r"[+-]?\s*"
_DECIMAL = re.compile(
    rf"(?P<sign>{_SIGN})(?P<value>{_UNSIGNED})(?:[eE](?P<e>[+-]?\d+)|\s*(?:\*|\\times|\\cdot|[x·⋅∙])\s*10(?:\^|\*\*)\{{?(?P<ten>[+-]?\d+)\}}?)?"
)
_POWER = re.compile(rf"(?P<sign>{_SIGN})10(?:\^|\*\*)\{{?(?P<ten>[+-]?\d+)\}}?")
_SLASH = re.compile(
    rf"(?P<sign>{_SIGN})(?:(?P<whole>\d+)\s+)?(?P<top>{_UNSIGNED})\s*/\s*(?P<bottom>{_SIGN}{_UNSIGNED})"
)
_FRAC = re.compile(
    rf"(?P<sign>{_SIGN})(?P<whole>\d+)?\s*\\[dtc]?frac\s*"
    rf"(?:\{{\s*(?P<top>{_SIGN}{_UNSIGNED})\s*\}}|(?P<a>\d))\s*(?:\{{\s*(?P<bottom>{_SIGN}{_UNSIGNED})\s*\}}|(?P<b>\d))"
)
_SENTENCE_END: Final = " \t\n*_`:\uff1a" + _QUOTES + SENTENCE_END.replace("!", "").replace(".", "")
"""Punctuation and markup behind a number; no `!`, which may be a factorial."""
_DOLLAR = re.compile(r"(?:(?<![A-Za-z])(?:US|CA|AU|A|C)\\?|\\)\$")
_CURRENCY = re.compile(r"^([+-]?)\s*(?:[€£¥₹]|(?:USD|EUR|GBP|JPY|CNY|RMB|INR|Rs\.?)(?![A-Za-z]))\s*")
_RAISED = re.compile(r"(?<=10)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
"""A power of ten in raised digits."""
_PERCENT = re.compile(r"\s*(?:\\?%|per\s?cent)\s*\.?")
_SHORT_UNIT = r"(?:[kcm]?m|[km]?g|m?s|min|h|[mM]?[lL]|K|[kM]?Hz|k?W|k?V|A|k?J|k?N)(?![A-Za-z])"
_NO_UNIT = (
    r"(?!(?i:pi|sqrt|square\s+roots?|inf|infty|or|and|to|through|times|over|plus|minus|multiplied|divided|mod|modulo|remainder|"
    r"(?:squared|cubed)\s*$|factorial|choose|(?:more|less|fewer)\s+than|above|below|per\s?cent|"
    r"dozens?|hundreds?|thousands?|(?:m|b|tr|quadr)illions?|mil|[bt]n|lakhs?|crores?|googols?|"
    r"tenths?|hundredths?|thousandths?|millionths?|halves|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?)\b)"
)
"""Words behind a number that change the number."""
_CHINESE_UNIT = (
    "\\s*(?![\u4e07\u842c\u5343\u767e\u5341\u4ebf\u5104\u5146\u534a\u6210\u6298\u591a\u4f59\u9918\u4ee5\u6216"
    "\u81f3\u5230\u8d1f\u8ca0\u51e0\u5e7e\u500d]|\u5206\u4e4b)[\u4e00-\u9fff]{1,4}|[\u5186\uc6d0]"
)
"""A few characters, as of a counter, that are no numeral and no word that changes the number."""
_UNIT = re.compile(
    rf"(?:\s*(?:[°′″'\"][CF]?|(?:\^\{{?\\circ\}}?|\\circ)(?:\s*[CF](?![A-Za-z]))?|{_SHORT_UNIT}(?:/{_SHORT_UNIT})?|[€£¥₹¢]|"
    rf"(?<=\s){_NO_UNIT}[^\W\d_]{{2}}[^\d\\=<>+*]{{0,38}}|\({_NO_UNIT}[a-zA-Z°/^²³]+[23]?\)|{_CHINESE_UNIT})(?:\s*\^\{{?[23]\}}?|(?<=m)[23]|[²³])?)?\s*\.?"
)
"""The text that may follow a number: nothing, degrees, a known unit, a currency, or words that do not change the value."""

_ANOTHER_EQUATION = re.compile(r"(?:[,;]|\b(?:and|or)\b|\\quad)\s*[A-Za-z]\w*(?:_\{?\w+\}?)?\s*$")
"""What stands between the two of `x = 5, y = 6`."""
_CONDITION = re.compile(r"\s*(?:for|when|if|at|with|where|given)\b", re.IGNORECASE)
"""How the first equation begins that is no answer, as in `for n = 3, x = 5`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route. An answer is right within the larger of both tolerances."""

    answer_in: Form = "any"
    abs_tol: float = 0.0
    rel_tol: float | None = None
    """Tolerance as a share of the ground truth; unset: 1e-6, and 0 between two whole numbers."""

    def __post_init__(self) -> None:
        """Raises ValueError for a negative tolerance."""
        for name in ("abs_tol", "rel_tol"):
            if not (getattr(self, name) or 0.0) >= 0.0:
                raise ValueError(f"{name}: must be >= 0, got {getattr(self, name)}")


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings = Settings()) -> Grade:
    """Raw score 1.0 or 0.0; `unparsed` when the answer is no number. Raises ValueError for a ground truth that is no number."""
    gold = parse(question.ground_truth)
    if gold is None:
        raise ValueError(f"ground_truth: must be a number, got {question.ground_truth[:80]!r}")
    found = find(text, settings.answer_in)
    value = parse(found)
    right = value is not None and abs(value - gold) <= _tolerance(settings, gold, value)
    return Grade(
        raw_score=float(right), acc=float(right), extracted=found, status="unparsed" if value is None else "ok"
    )


def parse(text: str) -> Fraction | None:
    """The number that a text states, for an equation the number of the last side; None for a text that is no number."""
    *before, text = re.split(r"=|≈|\\approx", text)
    if any(map(_ANOTHER_EQUATION.search, before[1:])) and not _CONDITION.match(before[0]):
        return None
    text = _plain(text)
    while text[:1] + text[-1:] in ("()", "{}", "[]"):
        text = text[1:-1].strip()
    if len(text) > _LONGEST:
        return None
    text = _CURRENCY.sub(r"\1", text)
    for pattern in (_FRAC, _SLASH, _POWER, _DECIMAL):
        match = pattern.match(text)
        if match:
            rest = text[match.end() :]
            if _PERCENT.fullmatch(rest):
                value = _value(match)
                return None if value is None else value / 100
            return _value(match) if _UNIT.fullmatch(rest) else None
    return None


def _plain(text: str) -> str:
    """The text without LaTeX wrappers, fancy characters and blanks around."""
    text = _DOLLAR.sub("€", UNSEEN.sub("", text)).translate(
        _CHARACTERS
    )  # a currency's sign, not the delimiter of maths
    text = _LATEX_BLANK.sub(lambda match: "," if match[0] == "{,}" else " " if match[0] in (r"\ ", "~") else "", text)
    text = _TEXT.sub(r" \1 ", text)
    text = _RAISED.sub(_lowered, text)
    text = "".join(_spelt_out(character) for character in text).strip(" \t\n*_`" + _QUOTES)
    text = text.removesuffix("...").removesuffix("\u2026").rstrip(_SENTENCE_END)
    return text[:-1].rstrip(_SENTENCE_END) + "." if text.endswith(".") else text


def _spelt_out(character: str) -> str:
    """A vulgar fraction as ` 1/2`; every other character unchanged."""
    if unicodedata.category(character) != "No" or "⁄" not in (form := unicodedata.normalize("NFKC", character)):
        return character
    return f" {form.replace('⁄', '/')} "


def _lowered(raised: re.Match[str]) -> str:
    """Raised digits as `^{-3}`."""
    return f"^{{{unicodedata.normalize('NFKC', raised[0]).replace('−', '-')}}}"


def _value(match: re.Match[str]) -> Fraction | None:
    groups = match.groupdict()
    sign = -1 if "-" in groups["sign"] else 1
    if "ten" in groups:
        number = _fraction(groups.get("value", "1"))
        exponent = int(groups.get("e") or groups["ten"] or 0)
        return sign * number * Fraction(10) ** exponent if abs(exponent) <= _LARGEST_EXPONENT else None
    top, bottom = _fraction(groups["top"] or groups["a"]), _fraction(groups["bottom"] or groups["b"])
    whole = _fraction(groups["whole"] or "0")
    return sign * (whole + top / bottom) if bottom else None


def _fraction(text: str) -> Fraction:
    return Fraction("".join(text.replace(",", "").split()))


def _tolerance(settings: Settings, gold: Fraction, value: Fraction) -> Fraction:
    """The largest difference that is still right."""
    rel = settings.rel_tol
    if rel is None:
        share = Fraction(0) if gold.denominator == value.denominator == 1 else _DEFAULT_REL
    else:
        share = Fraction(rel)
    return max(Fraction(settings.abs_tol), share * abs(gold))
