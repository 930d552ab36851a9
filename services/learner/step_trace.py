"""The trace of one step, a trace of its own: the wait for its batch, training, gathering, publication and booking.

Each traced group of the batch gets a span in its own trace too, because the step is where the group's life comes to its aim.
A step that is trained again after a learner's death is another trace; in its groups' traces both spans stand.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.learner.batches.batch import Batch
from sluice.telemetry.traces.context import TraceContext, new_trace, parsed, within
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import MOST_LINKS, OFF, Tracer

TRAINING = "rl.train"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Phase:
    """A part of a step that has ended."""

    name: str
    place: TraceContext
    start_s: float
    end_s: float


@dataclass(kw_only=True, slots=True)
class StepTrace:
    """One step. Used by one thread after the other: the one that trains, then the one that makes the version known."""

    tracer: Tracer = OFF
    batch: Batch
    started_s: float
    """When the wait for the batch began, Unix time."""
    _root: TraceContext = field(default_factory=new_trace)
    _phases: list[_Phase] = field(default_factory=list)

    def waited(self) -> None:
        """The batch has come."""
        self._note("sluice.learner.wait", self._root.child(), self.started_s)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A part of the step; calls within are below it."""
        if not self.tracer.on:
            yield
            return
        place, start_s = self._root.child(), time.time()
        with within(place):
            yield
        self._note(name, place, start_s)

    def end(self, *, version: int) -> None:
        """The step is booked."""
        end_s = time.time()
        self.tracer.put(lambda: self._spans(version, end_s))

    def _note(self, name: str, place: TraceContext, start_s: float) -> None:
        if self.tracer.on:
            self._phases.append(_Phase(name=name, place=place, start_s=start_s, end_s=time.time()))

    def _spans(self, version: int, end_s: float) -> Iterator[SpanRecord]:
        groups = [place for text in self.batch.traceparents if (place := parsed(text)) is not None]
        about = {"sluice.step": self.batch.step, "sluice.policy.version": version}
        yield SpanRecord(
            name="rl.loop",
            place=self._root,
            start_s=self.started_s,
            end_s=end_s,
            attributes={**about, "sluice.groups": len(self.batch.groups)},
            links=groups[:MOST_LINKS],
        )
        for phase in self._phases:
            yield _below(self._root, phase, phase.place)
            if phase.name == TRAINING:
                yield from (_below(group, phase, group.child(), links=(self._root,)) for group in groups)


def _below(
    parent: TraceContext, phase: _Phase, place: TraceContext, *, links: Sequence[TraceContext] = ()
) -> SpanRecord:
    return SpanRecord(
        name=phase.name, place=place, parent_id=parent.span_id, start_s=phase.start_s, end_s=phase.end_s, links=links
    )
