"""The place of a span in its trace, as W3C's trace context carries it from process to process (w3.org/TR/trace-context).

Only sampled places exist: a trace that is not kept has none, and nothing is sent for it.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

TRACEPARENT: Final = "traceparent"
"""The key in gRPC's metadata."""

_LONGEST: Final = 256
"""Characters of a `traceparent` that are looked at; a later version of the standard may add to today's 55."""

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span's ids."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits."""

    @property
    def traceparent(self) -> str:
        """The W3C form."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def child(self) -> "TraceContext":
        """A place below this one, with an id of its own."""
        return TraceContext(self.trace_id, secrets.token_hex(8))

    def named_child(self, name: str) -> "TraceContext":
        """A place below this one whose id follows from `name`, so that each process, and a restarted one, finds the same."""
        return TraceContext(self.trace_id, _hex(f"{self.trace_id}/{name}", size=8))


def new_trace() -> TraceContext:
    """The root of a trace that is new."""
    return root_of(secrets.token_hex(16))


def root_of(trace_id: str) -> TraceContext:
    """The root of a trace that is known by its id alone: its span's id is the last half of the trace's."""
    return TraceContext(trace_id, trace_id[16:])


def trace_id_of(run: str, group_id: str) -> str:
    """The id of a group's trace: the same in every process and after every restart, and another in every run.

    `run` is a name that no other run has.
    """
    return _hex(f"{run}/{group_id}", size=16)


def is_sampled(trace_id: str, ratio: float) -> bool:
    """Whether the trace is among the share `ratio` that is kept; as OpenTelemetry's TraceIdRatioBased decides."""
    return int(trace_id[16:], 16) < round(ratio * 2**64)


def parsed(traceparent: str) -> TraceContext | None:
    """The caller's place; None for text that is none, and for a trace that the caller does not keep."""
    found = _FORM.fullmatch(traceparent) if len(traceparent) <= _LONGEST else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    is_valid = version != "ff" and not (version == "00" and more) and int(trace_id, 16) and int(span_id, 16)
    return TraceContext(trace_id, span_id) if is_valid and int(flags, 16) & _SAMPLED else None


_current: ContextVar[TraceContext | None] = ContextVar("trace", default=None)


def current() -> TraceContext | None:
    """The place below which this task works; calls carry it to the process that serves them."""
    return _current.get()


@contextmanager
def within(place: TraceContext | None) -> Iterator[None]:
    """Works below `place` meanwhile; None changes nothing."""
    if place is None:
        yield
        return
    token = _current.set(place)
    try:
        yield
    finally:
        _current.reset(token)


def enter(place: TraceContext) -> None:
    """Works below `place` to the end of this task."""
    _current.set(place)


def _hex(text: str, *, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
