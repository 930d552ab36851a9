"""One group's trace, made of its ledger row when the group has ended: what waits for the end of a span survives this process.

The calls that serve a group in other processes are spans of the same trace. Those processes write these spans, below
ids that follow from the trace's id and from facts of the row, so that the spans fit together however often the
coordinator was started again meanwhile.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from services.coordinator.state.group import Attempt
from sluice.telemetry.traces.context import TraceContext, root_of
from sluice.telemetry.traces.span import NOTHING, SpanEvent, SpanRecord, Value
from sluice.telemetry.traces.tracer import Tracer

_NEEDED: Final = (
    *(
        "group_id",
        "trace_id",
        "prompt_id",
        "data_source",
        "admission",
        "admitted_s",
        "attempts",
        "grading_s",
        "graded_s",
    ),
    *(
        "queued_s",
        "assigned_s",
        "ended_s",
        "term",
        "fault",
        "step",
        "oldest_version",
        "samples",
        "tokens",
        "lost_tokens",
    ),
    *("acc_mean",),
)

_WAITS: Final = ("sluice.admission", "sluice.queue", "sluice.batch")


def trace_end(tracer: Tracer, row: Mapping[str, Any], *, step: TraceContext | None = None) -> None:
    """Has the spans of a group that has ended written, if the group is traced. For `step` see `group_spans`."""
    if row.get("trace_id"):
        tracer.put(partial(group_spans, life_of(row), step=step))


def life_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the trace needs of a row, without the completions."""
    return {name: row[name] for name in _NEEDED if name in row}


def attempt_of(trace_id: str, attempt: Attempt) -> TraceContext | None:
    """The place of an attempt, also while it is under way; None for a group that is not traced."""
    return _attempt(root_of(trace_id), attempt.number, attempt.started_s) if trace_id else None


def grading_of(trace_id: str, grading_s: float) -> TraceContext | None:
    """The place of the grading that began at `grading_s`; None for a group that is not traced."""
    return _grading(root_of(trace_id), grading_s) if trace_id else None


def group_spans(life: Mapping[str, Any], *, step: TraceContext | None = None) -> Iterator[SpanRecord]:
    """The spans of a group that has ended: the root, and below it admission, attempts, grading, queue and batch.

    `step` is the root of the step that trained the group, in a trace of its own.
    """
    root = root_of(life["trace_id"])
    yield _root(life, root, step)
    attempts = life.get("attempts") or []
    started = [attempt["started_s"] for attempt in attempts if attempt["number"]]
    edges = (
        (life["admitted_s"], min(started, default=life["ended_s"])),
        (life.get("queued_s", -1.0), _first(life.get("assigned_s", -1.0), life["ended_s"])),
        (life.get("assigned_s", -1.0), life["ended_s"]),
    )
    for name, (start_s, end_s) in zip(_WAITS, edges, strict=True):
        if start_s > 0:
            yield _below(root, root.named_child(name), name, start_s, end_s)
    for attempt in attempts:
        if attempt["number"]:
            yield _sampling(root, attempt, life)
    if (grading_s := life.get("grading_s", -1.0)) > 0:
        place = _grading(root, grading_s)
        end_s = _first(life["graded_s"], life["ended_s"])
        yield _below(root, place, "rl.reward", grading_s, end_s, {"sluice.acc_mean": life["acc_mean"]})


def _root(life: Mapping[str, Any], root: TraceContext, step: TraceContext | None) -> SpanRecord:
    attributes: dict[str, Value] = {
        "sluice.group.id": life["group_id"],
        "sluice.group.term": life["term"],
        "sluice.group.admission": life["admission"],
        "sluice.prompt.id": life["prompt_id"],
        "sluice.data_source": life.get("data_source") or "",
        "sluice.samples": life["samples"],
        "sluice.lost_tokens": life["lost_tokens"],
        "sluice.policy.oldest_version": life["oldest_version"],
        "gen_ai.usage.output_tokens": life["tokens"],
    }
    if life["step"] >= 0:
        attributes["sluice.step"] = life["step"]
    return SpanRecord(
        name="sluice.group",
        place=root,
        start_s=_first(life["admitted_s"], life["ended_s"]),
        end_s=life["ended_s"],
        attributes=attributes,
        events=list(_moments(life)),
        links=() if step is None else (step,),
        fault=f"{life['term']}: {life['fault']}" if life["term"].startswith("failed:") else "",
    )


def _moments(life: Mapping[str, Any]) -> Iterator[SpanEvent]:
    for attempt in life.get("attempts") or ():
        if not attempt["number"]:
            yield SpanEvent(name="sluice.coordinator_restarted", time_s=attempt["started_s"])
    if (graded_s := life.get("graded_s", -1.0)) > 0:
        kept = life.get("queued_s", -1.0) > 0
        yield SpanEvent(
            name="sluice.verdict", time_s=graded_s, attributes={"sluice.verdict": _verdict(life, kept=kept)}
        )


def _verdict(life: Mapping[str, Any], *, kept: bool) -> str:
    return "kept" if kept or life["term"] in ("stale", "surplus") else life["term"]


def _sampling(root: TraceContext, attempt: Mapping[str, Any], life: Mapping[str, Any]) -> SpanRecord:
    """One attempt: a request for samples, or the episodes that came to this try."""
    return _below(
        root,
        _attempt(root, attempt["number"], attempt["started_s"]),
        "rl.sample",
        attempt["started_s"],
        _first(attempt["ended_s"], life["ended_s"]),
        {
            "sluice.attempt": attempt["number"],
            "sluice.rollout": attempt["rollout"],
            "sluice.policy.version": attempt["version"],
            "sluice.samples": attempt["samples"],
            "gen_ai.request.choice.count": attempt["asked"],
            "gen_ai.usage.output_tokens": attempt["tokens"],
        },
        fault=attempt["fault"],
    )


def _below(
    root: TraceContext,
    place: TraceContext,
    name: str,
    start_s: float,
    end_s: float,
    attributes: Mapping[str, Value] = NOTHING,
    *,
    fault: str = "",
) -> SpanRecord:
    return SpanRecord(
        name=name,
        place=place,
        parent_id=root.span_id,
        start_s=start_s,
        end_s=max(start_s, end_s),
        attributes=attributes,
        fault=fault,
    )


def _attempt(root: TraceContext, number: int, started_s: float) -> TraceContext:
    return root.named_child(f"attempt {number} {started_s!r}")


def _grading(root: TraceContext, grading_s: float) -> TraceContext:
    return root.named_child(f"grading {grading_s!r}")


def _first(time_s: float, otherwise_s: float) -> float:
    """A time that is known, else another."""
    return time_s if time_s > 0 else otherwise_s
