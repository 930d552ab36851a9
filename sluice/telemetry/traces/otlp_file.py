"""Spans as OTLP's JSON, a request a line: what the collector's `otlpjsonfile` receiver reads. Needs no package.

A file that has outgrown its size moves to NAME.1, over the one before, so a run of any length leaves twice that size at most.
On a full disk the spans of a call are left out.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sluice.process.output import former_of
from sluice.run_dir.private import make_private_folder, open_private
from sluice.telemetry.traces.context import TraceContext
from sluice.telemetry.traces.span import SpanEvent, SpanRecord, Value, nanoseconds, text_of

_KINDS: Final = {"internal": 1, "server": 2}
_ERROR: Final = 2

_quoted: Final = json.JSONEncoder().encode
"""A text as JSON. The rest of a span is written around its texts, which takes a third of the time of dictionaries."""


class OtlpFile:
    """A SpanWriter into one file, which no other process writes. `write` raises OSError."""

    def __init__(self, path: Path, *, most_bytes: int, resource: Mapping[str, Value], version: str) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._before = (
            f'{{"resourceSpans":[{{"resource":{{"attributes":{_attributes(resource)}}},'
            f'"scopeSpans":[{{"scope":{{"name":"sluice","version":{_quoted(version)}}},"spans":['
        )

    def write(self, spans: Iterable[SpanRecord]) -> None:
        """SpanWriter.write: one line."""
        line = f"{self._before}{','.join(map(_span, spans))}]}}]}}]}}\n".encode()
        make_private_folder(self._path.parent)
        with open_private(self._path, "ab", buffering=0) as file:
            size = file.tell()
            if size and not _ends_a_line(self._path):
                line = b"\n" + line  # after a process that was killed in a line
            left = memoryview(line)
            while left:
                left = left[file.write(left) :]
        if size + len(line) > self._most_bytes:
            self._path.replace(former_of(self._path))

    def close(self) -> None:
        """SpanWriter.close: nothing is held."""


def _span(span: SpanRecord) -> str:
    place = span.place
    made = (
        f'{{"traceId":"{place.trace_id}","spanId":"{place.span_id}","name":{_quoted(span.name)},'
        f'"kind":{_KINDS[span.kind]},"startTimeUnixNano":"{nanoseconds(span.start_s)}",'
        f'"endTimeUnixNano":"{nanoseconds(span.end_s)}"'
    )
    if span.parent_id:
        made += f',"parentSpanId":"{span.parent_id}"'
    if span.attributes:
        made += f',"attributes":{_attributes(span.attributes)}'
    if span.events:
        made += f',"events":[{",".join(map(_event, span.events))}]'
    if span.links:
        made += f',"links":[{",".join(map(_link, span.links))}]'
    status = f'"code":{_ERROR},"message":{_quoted(text_of(span.fault))}' if span.fault else ""
    return f'{made},"status":{{{status}}}}}'


def _event(event: SpanEvent) -> str:
    return (
        f'{{"timeUnixNano":"{nanoseconds(event.time_s)}","name":{_quoted(event.name)},'
        f'"attributes":{_attributes(event.attributes)}}}'
    )


def _link(link: TraceContext) -> str:
    return f'{{"traceId":"{link.trace_id}","spanId":"{link.span_id}"}}'


def _attributes(values: Mapping[str, Value]) -> str:
    return "[" + ",".join([f'{{"key":{_quoted(key)},"value":{_value(value)}}}' for key, value in values.items()]) + "]"


def _value(value: Value) -> str:
    if isinstance(value, str):
        return f'{{"stringValue":{_quoted(value)}}}'
    if isinstance(value, bool):
        return f'{{"boolValue":{"true" if value else "false"}}}'
    if isinstance(value, int):
        return f'{{"intValue":"{value}"}}'
    if isinstance(value, float):
        return f'{{"doubleValue":{_double(value)}}}'
    return f'{{"arrayValue":{{"values":[{",".join(map(_value, value))}]}}}}'


def _double(value: float) -> str:
    """As protobuf's JSON has it: what is no number of JSON is a text."""
    if math.isfinite(value):
        return repr(float(value))
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
