"""A span when it has ended: what happened between two moments, where in which trace.

Spans and events are tuples with names, not frozen dataclasses: a group has several, and a tuple costs less than half.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from sluice.telemetry.redaction import redacted
from sluice.telemetry.traces.context import TraceContext

Value = str | bool | int | float | Sequence[str]
Kind = Literal["internal", "server"]

TEXT_CHARACTERS = 500
"""How much of a text a span keeps: errors may have any length."""

NOTHING: Final[Mapping[str, Value]] = MappingProxyType({})


class SpanEvent(NamedTuple):
    """A moment within a span."""

    name: str
    time_s: float
    """Unix time."""
    attributes: Mapping[str, Value] = NOTHING


class SpanRecord(NamedTuple):
    """One span. Spans are written when they have ended, so that none is lost with a process that dies meanwhile but its own."""

    name: str
    place: TraceContext
    start_s: float
    """Unix time."""
    end_s: float
    parent_id: str = ""
    """Empty for a trace's root."""
    kind: Kind = "internal"
    attributes: Mapping[str, Value] = NOTHING
    events: Sequence[SpanEvent] = ()
    links: Sequence[TraceContext] = ()
    """Spans of other traces that belong to it."""
    fault: str = ""
    """Why it failed; empty: it did not."""


def text_of(text: str) -> str:
    """A text as a span keeps it: short, without secrets, and UTF-8 whatever it was."""
    return redacted(text[: 4 * TEXT_CHARACTERS])[:TEXT_CHARACTERS].encode("utf-8", "replace").decode()


def nanoseconds(time_s: float) -> int:
    """OpenTelemetry's unit."""
    return int(time_s * 1e6) * 1000
