"""What traces cost: a group's way through the coordinator with and without `telemetry.traces`, in turns, same run.

Real and simulated as in coordinator_relay.py, whose costs a group are what is compared: CPU seconds of the coordinator's
process, in which a thread also makes the spans and writes them. A traced group has 6 spans of the coordinator's own.
To a collector: one that takes every call and keeps nothing, in this process.

Two ratios: with traces / without, which on a machine where other things run says little about a hundredth; and 1 + a trace's
own work / a group's cost, where that work - ids, places, spans, their encoding and writing - is done alone, for many groups.

A trace costs the same whatever a group's size, so the share is large where a group is nothing but its bookkeeping (`small
groups`: 8 answers of 10 tokens that take no time). There a share of the groups is traced, as `trace_sample` is for.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export import SpanExportResult

from benchmarks.coordinator_relay import SMALL, Cost, Load, coordinator_cost
from benchmarks.report import Row
from services.coordinator.state.group import Attempt, Group
from services.coordinator.state.group_trace import attempt_of, grading_of, trace_end
from services.coordinator.state.ledger_row import ledger_row
from sluice.telemetry.traces.feed import AT_ONCE, Maker
from sluice.telemetry.traces.otlp import OtlpWriter
from sluice.telemetry.traces.otlp_file import OtlpFile
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import Tracer

LIMIT = 1.02
GROUPS = 4000
RESOURCE = {"service.name": "sluice-coordinator", "rl.run.id": "benchmark"}
ROUNDS = 3
ROLLOUTS = 16
REASONING = Load(name="groups of 16 x 2,000 tokens", n=16, tokens=2000, batch=64, batches=4, target=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One load with traces."""

    load: Load
    where: str
    """`file` or `collector`."""
    sample: float


CASES = (
    Case(load=REASONING, where="file", sample=1.0),
    Case(load=REASONING, where="collector", sample=1.0),
    Case(load=SMALL, where="file", sample=1.0),
    Case(load=SMALL, where="file", sample=0.1),
)


def run(cases: Sequence[Case] = CASES, *, rounds: int = ROUNDS) -> list[Row]:
    """Every case, with and without traces in turns; the medians of the rounds are compared."""
    rows: list[Row] = []
    with _collector() as address:
        for case in cases:
            traces = "file" if case.where == "file" else f"otlp://{address}"
            telemetry = {"traces": traces, "trace_sample": case.sample}
            off, on = uvloop.run(_in_turns(case.load, telemetry, rounds))
            own = case.sample * _own_work_ms(case.where)
            what = f"{case.load.name}, {case.sample:.0%} traced, to a {case.where}"
            limited = case.load is REASONING or case.sample < 1.0
            rows += [
                Row(what=f"{what}: without traces", value=off, unit="CPU ms/group", target="", met=True),
                Row(what=f"{what}: with traces", value=on, unit="CPU ms/group", target="", met=True),
                Row(what=f"{what}: a trace's own work", value=own, unit="CPU ms/group", target="", met=True),
                *(
                    Row(
                        what=f"{what}: {name}",
                        value=ratio,
                        unit="",
                        target=f"<= {LIMIT}" if limited else "",
                        met=not limited or ratio <= LIMIT,
                    )
                    for name, ratio in (("with / without", on / off), ("1 + own work / without", 1.0 + own / off))
                ),
            ]
    return rows


async def _in_turns(load: Load, telemetry: Mapping[str, Any], rounds: int) -> tuple[float, float]:
    off: list[Cost] = []
    on: list[Cost] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="sluice-traces-") as folder:
            off.append(await coordinator_cost(Path(folder) / "off", load, ROLLOUTS))
            on.append(await coordinator_cost(Path(folder) / "on", load, ROLLOUTS, telemetry=telemetry))
    return statistics.median(one.cpu_ms for one in off), statistics.median(one.cpu_ms for one in on)


def _own_work_ms(where: str) -> float:
    """CPU milliseconds that one group's trace takes, without the calls that carry its places."""
    made: list[Maker] = []
    writer = _Writer(where)
    tracer = Tracer(_Noted(made), run="benchmark")  # type: ignore[arg-type]
    attempt = Attempt(number=1, rollout="rollout-0", version=0, asked=16, started_s=1e9, ended_s=1e9 + 1.0)
    rows = [_row(number, attempt) for number in range(GROUPS)]
    started = time.process_time()
    for row in rows:
        trace_id = row["trace_id"] = tracer.trace_of(row["group_id"])
        for place in (attempt_of(trace_id, attempt), grading_of(trace_id, 1e9 + 1.0)):
            assert place is not None
            place.traceparent  # noqa: B018 - what a call carries
        trace_end(tracer, row)
        if len(made) == AT_ONCE:
            writer.write(span for record in made for span in record())
            made.clear()
    writer.write(span for record in made for span in record())
    return 1e3 * (time.process_time() - started) / GROUPS


def _row(number: int, attempt: Attempt) -> dict[str, Any]:
    prompt = QuickPrompt(prompt_id="0" * 32, data_source="mixadd3")
    group = Group(group_id=f"run-{number:07d}", admission=number, prompt=prompt, cursor="")  # type: ignore[arg-type]
    group.attempts.append(attempt)
    group.grading_s, group.graded_s = 1e9 + 1.0, 1e9 + 1.5
    times = {"admitted_s": 1e9 - 1.0, "queued_s": 1e9 + 2.0, "assigned_s": 1e9 + 3.0, "ended_s": 1e9 + 4.0}
    return ledger_row(group, term="trained") | times


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickPrompt:
    """What a ledger row has of a prompt."""

    prompt_id: str
    data_source: str


class _Noted:
    """In place of a feed: keeps the records for this thread."""

    def __init__(self, made: list[Maker]) -> None:
        self._made = made

    def put(self, record: Maker) -> None:
        self._made.append(record)


class _Writer:
    """A file's writer, or a collector's up to the bytes that it sends."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._folder = tempfile.TemporaryDirectory(prefix="sluice-traces-")
        path = Path(self._folder.name) / "traces.jsonl"
        self._file = OtlpFile(path, most_bytes=1 << 30, resource=RESOURCE, version="0")
        self._sent = OtlpWriter(_as_sent, resource=RESOURCE, version="0")

    def write(self, spans: Iterable[SpanRecord]) -> None:
        (self._file if self._where == "file" else self._sent).write(spans)


def _as_sent(request: trace_service_pb2.ExportTraceServiceRequest) -> SpanExportResult:
    request.SerializeToString()
    return SpanExportResult.SUCCESS


class _Taker(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request: Any, context: Any) -> Any:
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def _collector() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Taker(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
