"""Whether the link between two rollouts holds its receiver up: by what both ends have verified. Pure; time is an argument.

A receiver that has all that its source has only waits for the source, whose own source may be at fault. So a link is at
fault only when the source had more than the receiver got.
"""

from dataclasses import dataclass
from typing import Final

SLOW_TIMES: Final = 4.0
"""How many times slower than its source a receiver may be. Chosen: two receivers share a source's link, twice over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look at both ends of a link."""

    at_s: float
    source: int
    """Leading buckets that the source has verified."""
    receiver: int
    """Leading buckets that the receiver has verified."""


def is_slow(first: Look, last: Look, *, source_per_s: float) -> bool:
    """Whether the receiver got much less between two looks than it could have; `source_per_s` are the buckets a second at
    which its source got them itself."""
    could_have = first.source - first.receiver
    got, seconds = last.receiver - first.receiver, last.at_s - first.at_s
    if seconds <= 0 or got >= could_have:
        return False  # it has all that was there: it waits for its source
    return got * SLOW_TIMES < source_per_s * seconds


def is_broken(ended: Look) -> bool:
    """Whether a link that has ended is at fault, and not a link further up: it is when the source had more to send."""
    return ended.source > ended.receiver
