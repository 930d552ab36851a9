"""Spans to an OpenTelemetry collector by OTLP over gRPC. The only module that imports opentelemetry (the extra `traces`)."""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sluice.errors import Unavailable
from sluice.telemetry.traces.context import TraceContext
from sluice.telemetry.traces.span import SpanRecord, Value, nanoseconds, text_of

EXPORT_S: Final = 5.0
"""Limit of one call to the collector, tries included; chosen: below the time that a service gets to end."""

_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpWriter:
    """A SpanWriter over one of OpenTelemetry's exporters. Its `write` raises Unavailable where the exporter fails."""

    def __init__(self, exporter: SpanExporter, *, resource: Mapping[str, Value], version: str) -> None:
        self._exporter = exporter
        self._resource = _OneResource(dict(resource))
        self._scope = InstrumentationScope("sluice", version)

    def write(self, spans: Sequence[SpanRecord]) -> None:
        """SpanWriter.write."""
        if self._exporter.export([self._readable(span) for span in spans]) is not SpanExportResult.SUCCESS:
            raise Unavailable("the collector of telemetry.traces took no spans")

    def close(self) -> None:
        """SpanWriter.close."""
        self._exporter.shutdown()

    def _readable(self, span: SpanRecord) -> ReadableSpan:
        """The span as exporters take it. Not by OpenTelemetry's tracers, whose spans have ids of the tracers' choice."""
        parent = span.parent_id and TraceContext(span.place.trace_id, span.parent_id)
        return ReadableSpan(
            name=span.name,
            context=_context(span.place),
            parent=_context(parent, is_remote=span.kind == "server") if parent else None,
            resource=self._resource,
            attributes=dict(span.attributes),
            events=[Event(one.name, dict(one.attributes), nanoseconds(one.time_s)) for one in span.events],
            links=[Link(_context(link, is_remote=True)) for link in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, text_of(span.fault)) if span.fault else Status(),
            start_time=nanoseconds(span.start_s),
            end_time=nanoseconds(span.end_s),
            instrumentation_scope=self._scope,
        )


class _OneResource(Resource):
    """Told apart by identity: the encoder asks for its hash with every span, which would be one of its JSON each time."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def to_collector(address: str, *, resource: Mapping[str, Value], version: str) -> OtlpWriter:
    """To the collector at `host:port`, unencrypted. Opens no connection yet."""
    # Its warnings of each call would say again what the feed counts.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    exporter = OTLPSpanExporter(endpoint=address, insecure=True, timeout=EXPORT_S)
    return OtlpWriter(exporter, resource=resource, version=version)


def _context(place: TraceContext, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), is_remote=is_remote, trace_flags=_SAMPLED)
