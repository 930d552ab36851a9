"""Reads a file of `telemetry.traces: file`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.run_dir.json_lines import json_lines


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span, with the attributes of its process."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    links: Sequence[Mapping[str, str]]
    fault: str


def spans_of(*paths: Path) -> list[Span]:
    """Every span in the files, in their order."""
    return [span for path in paths for line in json_lines(path) if line is not None for span in spans_in(line)]


def spans_in(request: Mapping[str, Any]) -> list[Span]:
    """The spans of one line."""
    (of_process,) = request["resourceSpans"]
    (in_scope,) = of_process["scopeSpans"]
    return [_span(span, _values(of_process["resource"]["attributes"])) for span in in_scope["spans"]]


def _span(span: Mapping[str, Any], resource: Mapping[str, Any]) -> Span:
    return Span(
        name=span["name"],
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_id=span.get("parentSpanId", ""),
        start_ns=int(span["startTimeUnixNano"]),
        end_ns=int(span["endTimeUnixNano"]),
        attributes=_values(span.get("attributes", ())),
        resource=resource,
        events=span.get("events", ()),
        links=span.get("links", ()),
        fault=span["status"].get("message", ""),
    )


def _values(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {one["key"]: _value(one["value"]) for one in attributes}


def _value(value: Mapping[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "arrayValue":
        return [_value(one) for one in inner["values"]]
    return int(inner) if kind == "intValue" else inner
