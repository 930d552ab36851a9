r"""Finds the final answer in a completion, in the forms that people ask models for.

Text in, text out; the verifiers decide whether an answer is right. The last answer of a completion counts, because a model
that corrects itself means the last answer. Thoughts, up to the last `</think>`, hold no answer, and neither do thoughts that
a completion begins with and never ends.

`Answer:` is read as models write it: in bold or italics, with a full-width colon, as `answer is:`, in Chinese (with a verb
for the colon too), as a heading with the answer below.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Form = Literal["any", "whole", "line", "boxed", "tag", "hashes"]
"""Where an answer stands: `line` after `Answer:`, `boxed` in \boxed{}, `tag` between <answer> tags, `hashes` after ####,
`whole` is the whole completion. `any` is the one of the four marks that begins last, else the whole completion."""

TAIL_CHARS: Final = 4000
"""How many characters are searched, from the end of a completion: no answer is longer, and no search gets slow."""

UNSEEN: Final = re.compile("[\x00-\x08\x0e-\x1f\u200b-\u200f\u2060\ufeff]")
"""Characters that nobody sees: control characters, those of no width, the byte-order mark."""

SENTENCE_END: Final = ".;,!\u3002\uff1b\uff0c\uff01\uff0e"
"""Punctuation that ends a sentence or a line, full-width forms included."""

_MARKUP = "[*_`]*"
_LINE = re.compile(
    rf"(?P<mark>(?:(?:answer|\u7b54\u6848){_MARKUP}(?:\s+is{_MARKUP})?\s*[:\uff1a]|\u7b54\u6848\s*[\u662f\u4e3a\u70ba]\s*[:\uff1a]?)"
    rf"{_MARKUP})\s*(?:(?:\\\[|\$\$)[ \t]*\n\s*)?(?=(?P<answer>[^\n]*))"
    rf"|^[ \t#>*_`]*(?:the[ \t]+)?(?:final[ \t]+)?(?P<heading>answer)[ \t*_`]*\n\s*(?P<below>[^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_BOX = "\\boxed{"
_END_OF_THOUGHT = re.compile(r"</think>", re.IGNORECASE)
_THOUGHT = re.compile(r"\s*<think>", re.IGNORECASE)


def find(text: str, form: Form) -> str:
    """The last answer in that form, stripped; empty without an answer."""
    text = after_thought(text)[-TAIL_CHARS:]
    if form == "whole":
        return text.strip()
    if form != "any":
        return _MARKS[form](text)[1].strip()
    marked = last_marked(text)
    return text.strip() if marked is None else marked.answer


def after_thought(text: str) -> str:
    """The completion behind the last `</think>`; the whole completion without a `</think>`, nothing where thoughts
    begin and never end.

    Without the blanks at its end, which may be more than the characters that are searched.
    """
    rest = _END_OF_THOUGHT.split(text)[-1].rstrip()
    return "" if _THOUGHT.match(rest) else rest


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """An answer behind a mark."""

    answer: str
    """The marked text, stripped."""
    rest: str
    """The text from the mark on, to the completion's end."""
    before: str
    """The text before the mark."""


def last_marked(text: str) -> Marked | None:
    """The answer behind the mark that begins last; None without a mark."""
    text = after_thought(text)[-TAIL_CHARS:]
    begin, answer = max(mark(text) for mark in _MARKS.values())
    return Marked(answer=answer.strip(), rest=text[begin:], before=text[:begin]) if begin >= 0 else None


def marked_line(text: str) -> str:
    """What stands behind the last `Answer:` as it is written, with the markup that `find` takes off; empty without one."""
    *_, last = None, *_LINE.finditer(after_thought(text)[-TAIL_CHARS:])
    return "" if last is None else (last["below"] or last["answer"] or "").strip()


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


def _line(text: str) -> tuple[int, str]:
    *_, last = None, *_LINE.finditer(text)
    if last is None:
        return -1, ""
    begin = max(last.start("mark"), last.start("heading"))
    if last["heading"]:
        return begin, _without_markup(last["below"], before="")
    before = text[text.rfind("\n", 0, begin) + 1 : begin] + last["mark"]
    return begin, _without_markup(last["answer"], before=before)


def _without_markup(answer: str, *, before: str) -> str:
    """The answer without bold, italics or code around it, which may begin in the same line before the answer."""
    answer = answer.strip()
    end = answer[len(answer.rstrip(SENTENCE_END)) :]
    answer = answer.removesuffix(end)
    for mark in ("**", "__", "*", "_", "`"):
        inner = answer.removesuffix(mark)
        if inner == answer:
            continue
        if before.count(mark) % 2:
            answer = inner.strip()
        elif inner.startswith(mark) and mark not in inner[len(mark) :]:
            answer = inner[len(mark) :].strip()
    return answer + end


_MARKS = {
    "line": _line,
    "boxed": _boxed,
    "tag": lambda text: _last_match(_TAG, text),
    "hashes": lambda text: _last_match(_HASHES, text),
}
"""Form -> where the last mark begins (-1: nowhere) and the text that the mark marks."""
