"""Checks of request fields that every server makes the same way: durations and names. Each raises InvalidRequest.

A duration that is not a number compares false with every limit, so that a wait would never end; a name without a bound is
kept, logged and shown as often as anybody looks.
"""

import re
from typing import Final

from sluice.errors import InvalidRequest
from sluice.limits import NAME_CHARACTERS

LONGEST_S: Final = 7 * 24 * 3600.0
"""Longest duration that a request may name."""

_NAME = re.compile(r"[!-~]*")  # ASCII, without blanks


def duration_s(value: float, *, field: str, may_be_0: bool = False) -> float:
    """The duration, if > 0 (or >= 0) and at most a week."""
    if not (0 < value <= LONGEST_S or (may_be_0 and value == 0)):
        raise InvalidRequest(
            f"{field}: must be seconds {'>= 0' if may_be_0 else '> 0'} and at most {LONGEST_S:g}, got {value:g}"
        )
    return value


def name(value: str, *, field: str, may_be_empty: bool = False) -> str:
    """The name, if of printable ASCII characters without blanks, and at most NAME_CHARACTERS long."""
    if not (value or may_be_empty) or len(value) > NAME_CHARACTERS or not _NAME.fullmatch(value):
        raise InvalidRequest(
            f"{field}: must be {'0' if may_be_empty else '1'} to {NAME_CHARACTERS} ASCII characters without blanks, got "
            f"{len(value)}: {value[:40]!r}"
        )
    return value


def line(value: str, *, field: str) -> str:
    """The text, if one printable line of at most NAME_CHARACTERS."""
    if len(value) > NAME_CHARACTERS or not (value.isprintable() or not value):
        raise InvalidRequest(
            f"{field}: must be one line of at most {NAME_CHARACTERS} characters, got {len(value)}: {value[:40]!r}"
        )
    return value


def as_line(text: str) -> str:
    """Any text, such as an error's, as `line` takes it: blanks joined, what cannot be printed as `?`, cut."""
    return "".join(one if one.isprintable() else "?" for one in " ".join(text.split())[:NAME_CHARACTERS])
