"""What traces cost: a group's way through the coordinator with and without `telemetry.traces`, in turns, same run.

Real and simulated as in coordinator_relay.py, whose costs a group are what is compared: CPU seconds of the coordinator's
process, in which a thread also makes the spans and writes them. A traced group has 6 spans of the coordinator's own.
To a collector: one that takes every call and keeps nothing, in this process.

Two ratios: with traces / without, of which the rounds without traces say how far it can be trusted (a hundredth is less than
they differ by where other things run); and 1 + a trace's own work / a group's cost, where that work - ids, places, spans, their
encoding and writing - is done alone, for many groups. The limit is on the second one.

A trace costs the same whatever a group's size, so the share is large where a group is nothing but its bookkeeping (`small
groups`: 8 answers of 10 tokens that take no time). There the limit is for a share of the groups, as `trace_sample` takes it.

What a user pays is a share of the whole machine: a short real run, `sluice demo`, says what a group costs all processes
together, and the spans of the calls to rollout and reward and of the learner are added to a trace's own work.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
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
from benchmarks.trace_parts.whole_run import Noted, calls_work_ms, demo_group_ms
from services.coordinator.state.group import Attempt, Group
from services.coordinator.state.group_trace import attempt_of, grading_of, trace_end
from services.coordinator.state.ledger_row import ledger_row
from sluice.telemetry.traces.feed import AT_ONCE, Maker
from sluice.telemetry.traces.otlp import OtlpWriter
from sluice.telemetry.traces.otlp_file import OtlpFile
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import OFF, Tracer

LIMIT = 1.02
GROUPS = 4000
RESOURCE = {"service.name": "sluice-coordinator", "rl.run.id": "benchmark"}
ROUNDS = 3
ROLLOUTS = 16
REASONING = Load(name="groups of 16 x 2,000 tokens", n=16, tokens=2000, batch=64, batches=4, target=0.0, warm=4)
"""The first groups end with the first commit, and then the way to a collector is imported, once: that is not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One load: without traces, and with all its groups traced to each of the places."""

    load: Load
    places: Sequence[str]
    """`file` or `collector`."""
    shares: Sequence[float]
    """Shares of the groups of which the own work is compared."""
    limited: float
    """The greatest share that LIMIT is for."""


CASES = (
    Case(load=REASONING, places=("file", "collector"), shares=(1.0,), limited=1.0),
    Case(load=SMALL, places=("file",), shares=(1.0, 0.1), limited=0.1),
)


def run(cases: Sequence[Case] = CASES, *, rounds: int = ROUNDS) -> list[Row]:
    """Every case; the medians of the rounds are compared."""
    own = {where: _own_work_ms(where) for where in ("file", "collector")}
    rows = [
        *(_plain(f"a trace's own work, to a {where}", ms, "CPU ms/group") for where, ms in own.items()),
        _plain("what is left of that work where traces are off", _own_work_ms("file", off=True), "CPU ms/group"),
        *_of_whole_run(own["file"]),
    ]
    with _collector() as address:
        for case in cases:
            off, *on = uvloop.run(_in_turns(case, address, rounds))
            without, name = statistics.median(off), case.load.name
            rows += [
                _plain(f"{name}: without traces", without, "CPU ms/group"),
                _plain(f"{name}: without traces, dearest / cheapest round", max(off) / min(off)),
            ]
            for where, costs in zip(case.places, on, strict=True):
                what, traced = f"{name}, to a {where}", statistics.median(costs)
                rows += [
                    _plain(f"{what}: with traces", traced, "CPU ms/group"),
                    _plain(f"{what}: with / without", traced / without),
                    *(
                        _share(
                            f"{what}, {share:.0%} traced: 1 + own work / without",
                            1.0 + share * own[where] / without,
                            limited=share <= case.limited,
                        )
                        for share in case.shares
                    ),
                ]
    return rows


def _of_whole_run(own_ms: float) -> list[Row]:
    everybody, calls = demo_group_ms(), calls_work_ms(n=8)
    what = "a real run, `sluice demo`, groups of 8 x about 20 tokens"
    return [
        _plain(f"{what}: all processes", everybody, "CPU ms/group"),
        _plain(f"{what}: own work of calls and learner", calls, "CPU ms/group"),
        _share(f"{what}: 1 + all own work / all processes", 1.0 + (own_ms + calls) / everybody, limited=True),
    ]


def _plain(what: str, value: float, unit: str = "") -> Row:
    return Row(what=what, value=value, unit=unit, target="", met=True)


def _share(what: str, value: float, *, limited: bool) -> Row:
    target = f"<= {LIMIT}" if limited else ""
    return Row(what=what, value=value, unit="", target=target, met=not limited or value <= LIMIT)


async def _in_turns(case: Case, address: str, rounds: int) -> list[list[float]]:
    """CPU milliseconds a group of each round: without traces, then to each of the places."""
    to = {"file": "file", "collector": f"otlp://{address}"}
    settings = [{}, *({"traces": to[where]} for where in case.places)]
    found: list[list[float]] = [[] for _ in settings]
    for _ in range(rounds):
        for telemetry, costs in zip(settings, found, strict=True):
            with tempfile.TemporaryDirectory(prefix="sluice-traces-") as folder:
                cost: Cost = await coordinator_cost(Path(folder) / "run", case.load, ROLLOUTS, telemetry=telemetry)
                costs.append(cost.cpu_ms)
    return found


def _own_work_ms(where: str, *, off: bool = False) -> float:
    """CPU milliseconds that one group's trace takes, without the calls that carry its places."""
    made: list[Maker] = []
    writer = _Writer(where)
    tracer = OFF if off else Tracer(Noted(made), run="benchmark")  # type: ignore[arg-type]
    attempt = Attempt(number=1, rollout="rollout-0", version=0, asked=16, started_s=1e9, ended_s=1e9 + 1.0)
    rows = [_row(number, attempt) for number in range(GROUPS)]
    started = time.process_time()
    for row in rows:
        trace_id = row["trace_id"] = tracer.trace_of(row["group_id"])
        for place in (attempt_of(trace_id, attempt), grading_of(trace_id, 1e9 + 1.0)):
            if place is not None:
                place.traceparent  # noqa: B018 - what a call carries
        trace_end(tracer, row)
        if len(made) == AT_ONCE:
            writer.write(span for record in made for span in record())
            made.clear()
    if made:
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
