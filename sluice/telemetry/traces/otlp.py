"""Spans to an OpenTelemetry collector by OTLP over gRPC. The only module that imports opentelemetry (the extra `traces`).

OpenTelemetry's exporter makes the calls, with its tries and its settings (OTEL_EXPORTER_OTLP_HEADERS and the like). The
messages are made here, because the way through OpenTelemetry's own spans costs several times as much.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.trace.export import SpanExportResult

from sluice.errors import Unavailable
from sluice.telemetry.traces.span import SpanRecord, Value, nanoseconds, text_of

EXPORT_S: Final = 5.0
"""Limit of one call to the collector, tries included; chosen: below the time that a service gets to end."""

_KINDS: Final = {"internal": Span.SPAN_KIND_INTERNAL, "server": Span.SPAN_KIND_SERVER}
_KNOWN: Final = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE: Final = _KNOWN | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK

Export = Callable[[ExportTraceServiceRequest], SpanExportResult]


class OtlpWriter:
    """A SpanWriter that hands requests to `export`. `write` raises Unavailable where `export` fails."""

    def __init__(
        self,
        export: Export,
        *,
        resource: Mapping[str, Value],
        version: str,
        shutdown: Callable[[], None] = lambda: None,
    ) -> None:
        self._export, self._shutdown = export, shutdown
        self._empty = ExportTraceServiceRequest()
        of_process = self._empty.resource_spans.add()
        _add_attributes(of_process.resource.attributes, resource)
        in_scope = of_process.scope_spans.add()
        in_scope.scope.name, in_scope.scope.version = "sluice", version

    def write(self, spans: Iterable[SpanRecord]) -> None:
        """SpanWriter.write: one request."""
        request = ExportTraceServiceRequest()
        request.CopyFrom(self._empty)
        made = request.resource_spans[0].scope_spans[0].spans
        for span in spans:
            _add_span(made, span)
        if self._export(request) is not SpanExportResult.SUCCESS:
            raise Unavailable("the collector of telemetry.traces took no spans")

    def close(self) -> None:
        """SpanWriter.close."""
        self._shutdown()


def to_collector(address: str, *, resource: Mapping[str, Value], version: str) -> OtlpWriter:
    """To the collector at `host:port`, unencrypted. Opens no connection yet."""
    # Its warnings of each call would say again what the feed counts.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = _OfMessages(endpoint=address, insecure=True, timeout=EXPORT_S)
    return OtlpWriter(exporter.send, resource=resource, version=version, shutdown=exporter.shutdown)


class _OfMessages(OTLPSpanExporter):
    """OpenTelemetry's exporter, for spans that are messages already."""

    def send(self, request: ExportTraceServiceRequest) -> SpanExportResult:
        return self._export(request)  # type: ignore[arg-type]

    def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
        return data

    def _count_data(self, data: Any) -> int:
        return len(data.resource_spans[0].scope_spans[0].spans)


def _add_span(made: Any, span: SpanRecord) -> None:
    place = span.place
    message = made.add(
        trace_id=bytes.fromhex(place.trace_id),
        span_id=bytes.fromhex(place.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=nanoseconds(span.start_s),
        end_time_unix_nano=nanoseconds(span.end_s),
        flags=_REMOTE if span.parent_id and span.kind == "server" else _KNOWN,
    )
    _add_attributes(message.attributes, span.attributes)
    for event in span.events:
        noted = message.events.add(name=event.name, time_unix_nano=nanoseconds(event.time_s))
        _add_attributes(noted.attributes, event.attributes)
    for link in span.links:
        message.links.add(trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id), flags=_REMOTE)
    if span.fault:
        message.status.code, message.status.message = Status.STATUS_CODE_ERROR, text_of(span.fault)
    else:
        message.status.SetInParent()


def _add_attributes(made: Any, values: Mapping[str, Value]) -> None:
    for key, value in values.items():
        _set(made.add(key=key).value, value)


def _set(message: Any, value: Value) -> None:
    if isinstance(value, str):
        message.string_value = value
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int):
        message.int_value = value
    elif isinstance(value, float):
        message.double_value = value
    else:
        for one in value:
            message.array_value.values.add(string_value=one)
