"""Spans as OTLP's JSON, a request a line: what the collector's `otlpjsonfile` receiver reads. Needs no package.

A file that has outgrown its size moves to NAME.1, over the one before, so a run of any length leaves twice that size at most.
On a full disk the spans of a call are left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sluice.process.output import former_of
from sluice.run_dir.private import make_private_folder, open_private
from sluice.telemetry.traces.span import SpanRecord, Value, nanoseconds, text_of

_KINDS: Final = {"internal": 1, "server": 2}
_ERROR: Final = 2


class OtlpFile:
    """A SpanWriter into one file, which no other process writes. Its `write` raises OSError."""

    def __init__(self, path: Path, *, most_bytes: int, resource: Mapping[str, Value], version: str) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._resource = {"attributes": _attributes(resource)}
        self._scope = {"name": "sluice", "version": version}

    def write(self, spans: Sequence[SpanRecord]) -> None:
        """SpanWriter.write: one line."""
        in_scope = {"scope": self._scope, "spans": [_span(span) for span in spans]}
        request = {"resourceSpans": [{"resource": self._resource, "scopeSpans": [in_scope]}]}
        line = json.dumps(request, separators=(",", ":")).encode() + b"\n"
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


def _span(span: SpanRecord) -> dict[str, Any]:
    made: dict[str, Any] = {
        "traceId": span.place.trace_id,
        "spanId": span.place.span_id,
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(nanoseconds(span.start_s)),
        "endTimeUnixNano": str(nanoseconds(span.end_s)),
        "status": {"code": _ERROR, "message": text_of(span.fault)} if span.fault else {},
    }
    if span.attributes:
        made["attributes"] = _attributes(span.attributes)
    if span.parent_id:
        made["parentSpanId"] = span.parent_id
    if span.events:
        made["events"] = [
            {
                "timeUnixNano": str(nanoseconds(one.time_s)),
                "name": one.name,
                "attributes": _attributes(one.attributes),
            }
            for one in span.events
        ]
    if span.links:
        made["links"] = [{"traceId": link.trace_id, "spanId": link.span_id} for link in span.links]
    return made


def _attributes(values: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    match value:
        case str():
            return {"stringValue": value}
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case _:
            return {"arrayValue": {"values": [{"stringValue": one} for one in value]}}


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
