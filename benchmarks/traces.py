"""What traces cost: a group's way through the coordinator with and without `telemetry.traces`, in turns, same run.

Real and simulated as in coordinator_relay.py, whose costs a group are what is compared: CPU seconds of the coordinator's
process, in which a thread also makes the spans and writes them. Every group is traced and has 6 spans of the coordinator's own.
To a collector: one that takes every call and keeps nothing, in this process.

A trace costs the same whatever a group's size, so the share is large where a group is nothing but its bookkeeping (`small
groups`: 8 answers of 10 tokens that take no time). There a share of the groups is traced, as `trace_sample` is for.
"""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from benchmarks.coordinator_relay import SMALL, Cost, Load, coordinator_cost
from benchmarks.report import Row

LIMIT = 1.02
ROUNDS = 3
ROLLOUTS = 16
REASONING = Load(name="groups of 16 x 2,000 tokens", n=16, tokens=2000, batch=64, batches=4)


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
            ratio = on / off
            what = f"{case.load.name}, {case.sample:.0%} traced, to a {case.where}"
            limited = case.load is REASONING or case.sample < 1.0
            rows += [
                Row(what=f"{what}: without traces", value=off, unit="CPU ms/group", target="", met=True),
                Row(what=f"{what}: with traces", value=on, unit="CPU ms/group", target="", met=True),
                Row(
                    what=f"{what}: with / without",
                    value=ratio,
                    unit="",
                    target=f"<= {LIMIT}" if limited else "",
                    met=not limited or ratio <= LIMIT,
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
