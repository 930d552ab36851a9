"""Places in traces, spans, and what takes them: a feed that never waits, a file and a collector's exporter that agree."""

import base64
import errno
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from structlog.testing import capture_logs

from services.coordinator.state.group import Attempt
from services.coordinator.state.group_trace import attempt_of, grading_of, group_spans, life_of
from services.learner.batches.batch import Batch
from services.learner.step_trace import TRAINING, StepTrace
from sluice.errors import Unavailable
from sluice.run_dir.full_disk import NoRoom
from sluice.telemetry.traces.context import TraceContext, current, is_sampled, parsed, root_of, trace_id_of, within
from sluice.telemetry.traces.feed import SpanFeed
from sluice.telemetry.traces.otlp import OtlpWriter
from sluice.telemetry.traces.otlp_file import OtlpFile
from sluice.telemetry.traces.span import TEXT_CHARACTERS, SpanEvent, SpanRecord, nanoseconds, text_of
from sluice.telemetry.traces.tracer import OFF, Tracer
from tests.otlp_lines import spans_of

PLACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
"""The example of W3C's recommendation."""
RESOURCE = {"service.name": "sluice-test", "rl.run.id": "run-1"}

RICH = SpanRecord(
    name="rl.sample",
    place=PLACE,
    parent_id="00f067aa0ba902b7",
    start_s=1700000000.25,
    end_s=1700000001.5,
    kind="server",
    attributes={
        "text": 'ü\u202e"\n\\',
        "whole": -(1 << 40),
        "share": 0.1,
        "yes": True,
        "some": ("stop", "length"),
        "small": 1e-9,
        "far": math.inf,
        "none": math.nan,
    },
    events=[SpanEvent(name="sluice.verdict", time_s=1700000001.0, attributes={"sluice.verdict": "kept"})],
    links=[TraceContext("1" * 32, "2" * 16)],
    fault="UNAVAILABLE: rollout-0 is gone",
)
PLAIN = SpanRecord(name="sluice.group", place=root_of(PLACE.trace_id), start_s=1.5, end_s=2.5)


# --- places --------------------------------------------------------------------------------------------------------


def test_a_place_travels_as_w3c_writes_it() -> None:
    assert PLACE.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert parsed(PLACE.traceparent) == PLACE
    assert parsed("cc" + PLACE.traceparent[2:-2] + "03-what-the-future-brings") == PLACE, (
        "a later version may add to it"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        PLACE.traceparent[:-2] + "00",  # a caller that does not keep the trace
        PLACE.traceparent.upper(),
        PLACE.traceparent + "-more",  # version 00 has no more
        "ff" + PLACE.traceparent[2:],
        f"00-{'0' * 32}-{PLACE.span_id}-01",
        f"00-{PLACE.trace_id}-{'0' * 16}-01",
        PLACE.traceparent + "\n",
        "01" + PLACE.traceparent[2:] + "-" + "x" * 1000,
    ],
)
def test_what_is_no_place_is_none(text: str) -> None:
    assert parsed(text) is None


def test_a_groups_trace_follows_from_run_and_group_and_a_share_of_groups_is_kept() -> None:
    ids = [trace_id_of("run-1", f"run-{number:07d}") for number in range(2000)]
    assert ids[0] == trace_id_of("run-1", "run-0000000") != trace_id_of("run-2", "run-0000000")
    assert len({root_of(one).span_id for one in ids}) == len(ids)
    assert all(is_sampled(one, 1.0) for one in ids)
    assert 400 < sum(is_sampled(one, 0.25) for one in ids) < 600
    assert all(is_sampled(one, 0.5) for one in ids if is_sampled(one, 0.25))


def test_off_samples_nothing_and_keeps_nothing() -> None:
    assert (OFF.on, OFF.trace_of("run-0000000"), OFF.dropped) == (False, "", 0)
    with OFF.span("rl.sync", None), within(None):
        assert current() is None


# --- a group, a step -----------------------------------------------------------------------------------------------

ATTEMPT = Attempt(number=1, rollout="rollout-0", version=3, asked=2, started_s=12.0, ended_s=15.0, samples=1, tokens=9)


def life(**changes: Any) -> dict[str, Any]:
    row = {
        "group_id": "run-0000007",
        "trace_id": PLACE.trace_id,
        "admission": 7,
        "prompt_id": "p",
        "data_source": "mixadd3",
        "admitted_s": 10.0,
        "attempts": [
            {name: getattr(ATTEMPT, name) for name in Attempt.__slots__} | {"fault": "it died"},
            {"number": 0, "rollout": "", "version": -1, "started_s": 16.0, "ended_s": 16.0, "fault": "restart"},
            {name: getattr(ATTEMPT, name) for name in Attempt.__slots__} | {"started_s": 17.0, "ended_s": 18.0},
        ],
        "grading_s": 18.0,
        "graded_s": 18.5,
        "queued_s": 19.0,
        "assigned_s": 21.0,
        "ended_s": 30.0,
        "term": "trained",
        "fault": "",
        "step": 4,
        "oldest_version": 3,
        "samples": 2,
        "tokens": 20,
        "lost_tokens": 9,
        "acc_mean": 0.5,
        "completions": ["not needed"],
    }
    return life_of(row | changes)


def test_a_groups_life_is_one_trace_whose_parts_follow_each_other() -> None:
    step = TraceContext("1" * 32, "2" * 16)
    root, *below = group_spans(life(), step=step)
    assert (root.name, root.place, root.parent_id) == ("sluice.group", root_of(PLACE.trace_id), "")
    assert (root.start_s, root.end_s, root.links, root.fault) == (10.0, 30.0, (step,), "")
    assert (root.attributes["sluice.group.term"], root.attributes["sluice.step"]) == ("trained", 4)
    assert [(event.name, event.time_s) for event in root.events] == [
        ("sluice.coordinator_restarted", 16.0),
        ("sluice.verdict", 18.5),
    ]
    assert {span.parent_id for span in below} == {root.place.span_id}
    assert {span.place.trace_id for span in below} == {PLACE.trace_id}
    assert sorted((span.start_s, span.end_s, span.name) for span in below) == [
        (10.0, 12.0, "sluice.admission"),
        (12.0, 15.0, "rl.sample"),
        (17.0, 18.0, "rl.sample"),
        (18.0, 18.5, "rl.reward"),
        (19.0, 21.0, "sluice.queue"),
        (21.0, 30.0, "sluice.batch"),
    ]
    places = {span.place for span in below}
    assert len(places) == len(below), "no two spans have one id"
    assert {attempt_of(PLACE.trace_id, ATTEMPT), grading_of(PLACE.trace_id, 18.0)} < places, "what calls have carried"
    assert [span.fault for span in below if span.name == "rl.sample"] == ["it died", ""]


@pytest.mark.parametrize(
    ("changes", "names", "fault"),
    [
        ({"term": "stale", "assigned_s": -1.0}, ["sluice.admission", "sluice.queue", "rl.sample", "rl.reward"], ""),
        (
            {"term": "failed:refused", "fault": "no", "graded_s": -1.0, "queued_s": -1.0, "assigned_s": -1.0},
            ["sluice.admission", "rl.sample", "rl.reward"],
            "failed:refused: no",
        ),
        (
            {"term": "abandoned", "attempts": [], "grading_s": -1, "graded_s": -1, "queued_s": -1, "assigned_s": -1},
            ["sluice.admission"],
            "",
        ),
        ({"admitted_s": -1.0, "assigned_s": -1.0, "queued_s": -1.0}, ["rl.sample", "rl.reward"], ""),
    ],
)
def test_a_group_that_ends_early_has_the_parts_that_it_came_to(changes: Any, names: list[str], fault: str) -> None:
    changes = {"step": -1, "attempts": [life()["attempts"][0]]} | changes
    root, *below = group_spans(life(**changes))
    assert ([span.name for span in below], root.fault) == (names, fault)
    assert all(root.start_s <= span.start_s <= span.end_s <= root.end_s for span in below if root.start_s < 30.0)


class Kept:
    """A SpanWriter in memory."""

    def __init__(self) -> None:
        self.spans: list[SpanRecord] = []

    def write(self, spans: Iterable[SpanRecord]) -> None:
        self.spans += spans

    def close(self) -> None:
        pass


def feed_to(writer: Any, **how: Any) -> SpanFeed:
    return SpanFeed(lambda: writer, flush_s=0.0, **how)


def test_a_step_is_a_trace_of_its_own_and_stands_in_the_traces_of_its_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "__post_init__", lambda _: None)
    batch = Batch(step=4, digest="d", groups=(), traceparents=(PLACE.traceparent, "", "nonsense"))
    kept = Kept()
    tracer = Tracer(feed_to(kept), run="run-1")
    trace = StepTrace(tracer=tracer, batch=batch, started_s=1.0)
    trace.waited()
    with trace.phase(TRAINING):
        pass
    with trace.phase("sluice.learner.commit"):
        carried = current()
    trace.end(version=5)
    tracer.close(within_s=5.0)
    root, *below = kept.spans
    assert (root.name, root.start_s, root.links) == ("rl.loop", 1.0, [PLACE])
    assert root.place == root_of(root.place.trace_id), "so that the coordinator finds it by the trace alone"
    assert carried is not None
    assert carried.trace_id == root.place.trace_id
    own = [span for span in below if span.place.trace_id == root.place.trace_id]
    assert [span.name for span in own] == ["sluice.learner.wait", TRAINING, "sluice.learner.commit"]
    (of_group,) = [span for span in below if span not in own]
    assert (of_group.name, of_group.parent_id, of_group.links) == (TRAINING, PLACE.span_id, (root.place,))
    assert of_group.place.trace_id == PLACE.trace_id


# --- where spans go ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_the_sdk() -> dict[str, Any]:
    """RICH and PLAIN as OpenTelemetry's own tracer makes them and its own encoder sends them."""
    kept = InMemorySpanExporter()
    for span in (RICH, PLAIN):
        provider = TracerProvider(resource=Resource(RESOURCE), id_generator=_Given(span.place), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(kept))
        above = NonRecordingSpan(
            _context(TraceContext(span.place.trace_id, span.parent_id or "0"), span.kind == "server")
        )
        made = provider.get_tracer("sluice", "0.1").start_span(
            span.name,
            set_span_in_context(above),
            kind=SpanKind[span.kind.upper()],
            attributes=span.attributes,
            links=[Link(_context(link, is_remote=True)) for link in span.links],
            start_time=nanoseconds(span.start_s),
        )
        for event in span.events:
            made.add_event(event.name, event.attributes, nanoseconds(event.time_s))
        if span.fault:
            made.set_status(Status(StatusCode.ERROR, span.fault))
        made.end(nanoseconds(span.end_s))
    return _in_json(encode_spans(kept.get_finished_spans()))


class _Given(IdGenerator):
    """Of one span."""

    def __init__(self, place: TraceContext) -> None:
        self._place = place

    def generate_trace_id(self) -> int:
        return int(self._place.trace_id, 16)

    def generate_span_id(self) -> int:
        return int(self._place.span_id, 16)


def _context(place: TraceContext, is_remote: bool) -> SpanContext:
    return SpanContext(int(place.trace_id, 16), int(place.span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED))


def _in_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """OTLP's JSON differs from protobuf's in the ids alone."""
    plain = json.dumps(MessageToDict(request, use_integers_for_enums=True))
    return _sorted(json.loads(plain, object_hook=_with_hex_ids))


def sent(*spans: SpanRecord) -> ExportTraceServiceRequest:
    """What a collector would get."""
    requests: list[ExportTraceServiceRequest] = []

    def export(request: ExportTraceServiceRequest) -> SpanExportResult:
        requests.append(ExportTraceServiceRequest.FromString(request.SerializeToString()))
        return SpanExportResult.SUCCESS

    writer = OtlpWriter(export, resource=RESOURCE, version="0.1")
    writer.write(iter(spans))
    writer.write([PLAIN])
    first, second = requests
    assert len(second.resource_spans[0].scope_spans[0].spans) == 1, "no request has what was in the one before"
    return first


def test_a_collector_gets_what_opentelemetry_itself_would_send(by_the_sdk: dict[str, Any]) -> None:
    assert _in_json(sent(RICH, PLAIN)) == by_the_sdk


def test_a_file_has_what_opentelemetry_itself_would_send(tmp_path: Path, by_the_sdk: dict[str, Any]) -> None:
    OtlpFile(tmp_path / "a.jsonl", most_bytes=1 << 20, resource=RESOURCE, version="0.1").write(iter([RICH, PLAIN]))
    (line,) = (tmp_path / "a.jsonl").read_text().splitlines()
    assert _sorted(_without_flags(json.loads(line))) == _without_flags(by_the_sdk)


def _without_flags(value: Any) -> Any:
    """Flags say what is remote; a file has none."""
    if isinstance(value, dict):
        return {name: _without_flags(one) for name, one in value.items() if name != "flags"}
    return [_without_flags(one) for one in value] if isinstance(value, list) else value


def _with_hex_ids(value: dict[str, Any]) -> dict[str, Any]:
    ids = {name for name in value if name in ("traceId", "spanId", "parentSpanId")}
    return {name: base64.b64decode(one).hex() if name in ids else one for name, one in value.items()}


def _sorted(request: dict[str, Any]) -> dict[str, Any]:
    for of_process in request["resourceSpans"]:
        of_process["resource"]["attributes"].sort(key=lambda one: one["key"])
    return request


def test_a_collector_that_takes_nothing_is_not_there() -> None:
    writer = OtlpWriter(lambda _: SpanExportResult.FAILURE, resource=RESOURCE, version="0.1")
    with pytest.raises(Unavailable):
        writer.write([RICH])


def test_a_hostile_fault_is_cut_and_is_utf8_in_both_forms(tmp_path: Path) -> None:
    nasty = SpanRecord(
        name="x", place=PLACE, start_s=1.0, end_s=2.0, fault="\ud800 redis://u:secretword@h/ " + "x" * 10**6
    )
    OtlpFile(tmp_path / "a.jsonl", most_bytes=1 << 20, resource=RESOURCE, version="0.1").write([nasty])
    (span,) = spans_of(tmp_path / "a.jsonl")
    assert span.fault == sent(nasty).resource_spans[0].scope_spans[0].spans[0].status.message
    assert len(span.fault) <= TEXT_CHARACTERS + 20
    assert "secretword" not in span.fault


def test_a_file_turns_over_goes_on_after_a_torn_line_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "traces" / "a.jsonl"
    spans = [RICH] * 4
    for number in range(7):  # about 4 kB a line: three fill a file
        OtlpFile(path, most_bytes=11000, resource=RESOURCE, version="0.1").write(spans)
        if number == 4:
            with path.open("ab") as file:
                file.write(b'{"resourceSpans": [{"cut')
    former = path.with_name("a.jsonl.1")
    assert former.stat().st_size < 16000
    assert (len(spans_of(former)), len(spans_of(path))) == (12, 4), "the line after the torn one is whole"
    assert path.stat().st_mode & 0o077 == 0


def records(number: int) -> Iterator[Callable[[], list[SpanRecord]]]:
    for one in range(number):
        yield lambda one=one: [SpanRecord(name=str(one), place=PLACE, start_s=1.0, end_s=2.0)]


def test_a_feed_keeps_the_order_and_writes_what_waits_at_its_end() -> None:
    kept = Kept()
    feed = feed_to(kept)
    for record in records(2000):
        feed.put(record)
    feed.close(within_s=10.0)
    names = [int(span.name) for span in kept.spans]
    assert all(one < other for one, other in pairwise(names))
    assert (len(names), feed.dropped) == (2000, 0)
    feed.put(next(records(1)))
    assert feed.dropped == 0, "after the end nothing is taken, and nothing is missed"


def test_a_writer_that_hangs_delays_nobody_and_what_it_does_not_take_is_counted() -> None:
    free, inside = threading.Event(), threading.Event()

    class Hanging(Kept):
        def write(self, spans: Iterable[SpanRecord]) -> None:
            inside.set()
            assert free.wait(20)
            super().write(spans)

    kept = Hanging()
    feed = feed_to(kept, most_waiting=3)
    first, *others = records(8)
    feed.put(first)
    assert inside.wait(20)
    with capture_logs() as logs:
        for record in others:
            feed.put(record)
        assert feed.dropped == 4
        feed.close(within_s=0.01)
    assert feed.dropped == 7, "the three that waited are lost too"
    assert [entry["records"] for entry in logs if entry["event"] == "traces_dropped"] == [1, 2, 4]
    free.set()


@pytest.mark.parametrize("error", [NoRoom(Path(), 1), OSError(errno.EROFS, "read-only"), Unavailable("no collector")])
def test_a_writer_that_fails_costs_its_call_alone(error: Exception) -> None:
    class FailsOnce(Kept):
        fails = True

        def write(self, spans: Iterable[SpanRecord]) -> None:
            if self.fails:
                self.fails = False
                raise error
            super().write(spans)

    kept = FailsOnce()
    with capture_logs() as logs:
        feed = feed_to(kept)
        first, second = records(2)
        feed.put(first)
        while not feed.dropped:
            threading.Event().wait(0.001)
        feed.put(second)
        feed.close(within_s=10.0)
    assert ([span.name for span in kept.spans], feed.dropped) == (["1"], 1)
    assert str(error) in logs[0]["reason"]


def test_a_password_at_the_place_where_a_text_is_cut_is_masked_whole() -> None:
    text = "x" * (TEXT_CHARACTERS - 20) + " http://me:password-of-me@host"
    assert "password" not in text_of(text)
