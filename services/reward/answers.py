r"""Finds the final answer in a completion, in the forms that people ask models for.

Text in, text out; the verifiers decide whether an answer is right. The last answer of a completion counts, because a model
that corrects itself means the last answer.
"""

import re
from typing import Final, Literal

Form = Literal["any", "whole", "line", "boxed", "tag", "hashes"]
"""Where an answer stands: `line` after `Answer:`, `boxed` in \boxed{}, `tag` between <answer> tags, `hashes` after ####,
`whole` is the whole completion. `any` is the one of the four marks that begins last, else the whole completion."""

TAIL_CHARS: Final = 4000
"""How many characters are searched, from the end of a completion: no answer is longer, and no search gets slow."""

_LINE = re.compile(r"Answer\s*:\s*([^\n]*)", re.IGNORECASE)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_BOX = "\\boxed{"


def find(text: str, form: Form) -> str:
    """The last answer in that form, stripped; empty without an answer."""
    text = text[-TAIL_CHARS:]
    if form == "whole":
        return text.strip()
    if form != "any":
        return _MARKS[form](text)[1].strip()
    marked = last_marked(text)
    return text.strip() if marked is None else marked


def last_marked(text: str) -> str | None:
    """The answer behind the mark that begins last, stripped; None without a mark."""
    begin, answer = max(mark(text[-TAIL_CHARS:]) for mark in _MARKS.values())
    return answer.strip() if begin >= 0 else None


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{}, braces balanced; None without a \boxed{}, or when the last one is never closed."""
    begin, answer = _boxed(text)
    return None if begin < 0 else answer


def _boxed(text: str) -> tuple[int, str]:
    begin = text.rfind(_BOX)
    if begin < 0:
        return -1, ""
    depth = 0
    for position in range(begin + len(_BOX) - 1, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return begin, text[begin + len(_BOX) : position]
    return -1, ""


def _last_match(pattern: re.Pattern[str], text: str) -> tuple[int, str]:
    last = (-1, "")
    for match in pattern.finditer(text):
        last = (match.start(), match[1])
    return last


_MARKS = {
    "line": lambda text: _last_match(_LINE, text),
    "boxed": _boxed,
    "tag": lambda text: _last_match(_TAG, text),
    "hashes": lambda text: _last_match(_HASHES, text),
}
"""Form -> where the last mark begins (-1: nowhere) and the text that the mark marks."""
