"""What a process notes of its work for traces: spans into a feed, or nothing at all where `telemetry.traces` is not set."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from sluice.telemetry.traces.context import TraceContext, enter, is_sampled, root_of, trace_id_of, within
from sluice.telemetry.traces.feed import Maker, SpanFeed
from sluice.telemetry.traces.span import SpanRecord, Value

MOST_LINKS = 128
"""Links that a span keeps, OpenTelemetry's own limit."""


class Tracer:
    """The tracer of one process. A tracer without a feed is off: nothing is sampled, and nothing is kept."""

    def __init__(self, feed: SpanFeed | None = None, *, run: str = "", ratio: float = 1.0) -> None:
        """`run` is a name that no other run has; `ratio` is the share of the groups that are traced."""
        self._feed, self._run, self._ratio = feed, run, ratio

    @property
    def on(self) -> bool:
        """Whether spans are kept."""
        return self._feed is not None

    @property
    def dropped(self) -> int:
        """Records that were not written."""
        return 0 if self._feed is None else self._feed.dropped

    def trace_of(self, group_id: str) -> str:
        """The id of the group's trace; empty for a group that is not traced."""
        if self._feed is None:
            return ""
        trace_id = trace_id_of(self._run, group_id)
        return trace_id if is_sampled(trace_id, self._ratio) else ""

    def put(self, record: Maker) -> None:
        """Keeps the spans that `record` makes later, in another thread."""
        if self._feed is not None:
            self._feed.put(record)

    def end(self, *spans: SpanRecord) -> None:
        """Keeps spans that have ended."""
        self.put(lambda: spans)

    @contextmanager
    def span(
        self,
        name: str,
        place: TraceContext | None,
        *,
        parent: TraceContext | None = None,
        attributes: Mapping[str, Value] | None = None,
        links: Sequence[TraceContext] = (),
        carried: bool = True,
    ) -> Iterator[dict[str, Value]]:
        """The work done within is a span at `place`; without a place it is none. Attributes and links may be added meanwhile.

        Calls made within carry the place, unless `carried` is false.
        """
        noted = dict(attributes or {})
        if self._feed is None or place is None:
            yield noted
            return
        started, fault = time.time(), ""
        try:
            with within(place if carried else None):
                yield noted
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
            raise
        finally:
            self.end(
                SpanRecord(
                    name=name,
                    place=place,
                    parent_id=parent.span_id if parent else "",
                    start_s=started,
                    end_s=time.time(),
                    attributes=noted,
                    links=links[:MOST_LINKS],
                    fault=fault,
                )
            )

    def close(self, *, within_s: float) -> None:
        """Writes what waits."""
        if self._feed is not None:
            self._feed.close(within_s=within_s)


OFF = Tracer()
"""Keeps nothing."""


def work_on(trace_id: str) -> None:
    """Works below the root of this trace to the end of the task; for an empty id nothing changes."""
    if trace_id:
        enter(root_of(trace_id))
