"""Grades the form of a completion, not its content: 1 when the completion has the required form, else 0.

Meant as one part of a weighted route. The form is a regular expression (searched; `.` matches newlines; anchors are the
user's), or tags that each open and close once, one after the other, with nothing but blanks around the tags.
"""

import re
from dataclasses import dataclass, field
from typing import Final

from services.reward.ports import Grade, Question

NAME: Final = "format"
VERSION: Final = "1"

_TAG_NAME = re.compile(r"[A-Za-z][\w-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a route: a pattern, tags, or both, which then both must hold."""

    pattern: str = ""
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises ValueError without a pattern and tags, or for a bad pattern or tag."""
        if not self.pattern and not self.tags:
            raise ValueError("pattern or tags: one must be given")
        if bad := [tag for tag in self.tags if not _TAG_NAME.fullmatch(tag)]:
            raise ValueError(f"tags: must be names without brackets, got {bad[0]!r}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: must be a regular expression, got {self.pattern!r} ({error})") from error


def prepare() -> None:
    """Nothing is slow here."""


def grade(*, question: Question, text: str, finished: bool, settings: Settings) -> Grade:
    """Raw score 1.0 or 0.0. A truncated completion has no form."""
    right = finished and _follows(settings.tags, text) and bool(re.search(settings.pattern, text, re.DOTALL))
    return Grade(raw_score=float(right), acc=float(right), extracted="")


def _follows(tags: list[str], text: str) -> bool:
    if any(text.count(mark) != 1 for tag in tags for mark in (f"<{tag}>", f"</{tag}>")):
        return False
    rest = text
    for tag in tags:
        before, _, rest = rest.partition(f"<{tag}>")
        _, closed, rest = rest.partition(f"</{tag}>")
        if before.strip() or not closed:
            return False
    return not (tags and rest.strip())
