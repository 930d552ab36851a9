"""What a group costs all processes of a real run together, and what the spans of the calls that serve a group cost."""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.demo_seeds import run_demo
from benchmarks.vs_trl.cpu_time import tree_cpu_seconds
from sluice.rpc.traced import moment, note, traced_unary
from sluice.run_dir.json_lines import json_lines
from sluice.telemetry.traces.context import TRACEPARENT, TraceContext, root_of, trace_id_of
from sluice.telemetry.traces.feed import AT_ONCE, Maker
from sluice.telemetry.traces.otlp_file import OtlpFile
from sluice.telemetry.traces.span import SpanRecord
from sluice.telemetry.traces.tracer import Tracer

STEPS = (2, 10)
"""Measured between the ends of these steps: engines are warm, and no evaluation runs."""
SETTINGS = (
    f"run.total_steps={STEPS[1] + 1}",
    *("eval.every_steps=0", "eval.prompts=8", "eval.n=2", "network.coordinator_port=0"),
)
CALLS = 2000


def demo_group_ms() -> float:
    """CPU milliseconds of all processes a group that ended, over some steps of a `sluice demo` without traces."""
    with tempfile.TemporaryDirectory(prefix="sluice-traces-") as folder, ThreadPoolExecutor(1) as pool:
        run_dir = Path(folder) / "demo"
        done = pool.submit(run_demo, run_dir, seed=0, settings=SETTINGS)
        (first_s, first), (last_s, last) = (_at_step(run_dir, step, done) for step in STEPS)
        done.result()
        ended = pq.read_table(run_dir / "ledger", columns=["ended_s"])["ended_s"].to_pylist()
    return 1e3 * (last - first) / sum(first_s <= one < last_s for one in ended)


def _at_step(run_dir: Path, step: int, done: "Future[None]") -> tuple[float, float]:
    """Unix time and CPU seconds of the run when so many steps have been reported."""
    path = run_dir / "metrics.jsonl"
    while True:
        lines = json_lines(path) if path.exists() else ()
        if sum(line is not None and line["kind"] == "step" for line in lines) >= step:
            return time.time(), tree_cpu_seconds(os.getpid()) - time.process_time()
        if done.done():
            done.result()
            raise RuntimeError(f"the demo ended before step {step}")
        time.sleep(0.1)


def calls_work_ms(*, n: int) -> float:
    """CPU milliseconds of a group's spans outside of the coordinator: a call of rollout and reward each, and the learner's."""
    made: list[Maker] = []
    tracer = Tracer(Noted(made), run="benchmark")  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="sluice-traces-") as folder:
        file = OtlpFile(Path(folder) / "calls.jsonl", most_bytes=1 << 30, resource={"service.name": "x"}, version="0")
        started = time.process_time()
        asyncio.run(_serve(tracer, file, made, n))
        return 1e3 * (time.process_time() - started) / CALLS


async def _serve(tracer: Tracer, file: OtlpFile, made: list[Maker], n: int) -> None:
    async def generate(_: object, __: object) -> None:
        note(gen_ai__operation__name="text_completion", gen_ai__provider__name="vllm", gen_ai__request__choice__count=n)
        for index in range(n):
            moment(
                "sluice.sample",
                sluice__sample=index,
                gen_ai__usage__output_tokens=20 + index,
                gen_ai__response__finish_reasons=("stop",),
            )

    async def score(_: object, __: object) -> None:
        note(gen_ai__evaluation__name="exact", sluice__samples=n)

    served = (
        traced_unary(generate, "/sluice.v1.RolloutService/Generate", tracer),
        traced_unary(score, "/sluice.v1.RewardService/Score", tracer),
    )
    for number in range(CALLS):
        place = root_of(trace_id_of("benchmark", f"run-{number:07d}"))
        for serve in served:  # a task each, as servers do: what a call notes ends with it
            await asyncio.create_task(serve(None, _Called(place)))  # type: ignore[arg-type]
        tracer.end(*_trained(place))
        if len(made) >= AT_ONCE:
            file.write(span for record in made for span in record())
            made.clear()
    file.write(span for record in made for span in record())


def _trained(place: TraceContext) -> Iterable[SpanRecord]:
    links = (root_of("1" * 32),)
    yield SpanRecord(
        name="rl.train", place=place.child(), parent_id=place.span_id, start_s=1e9, end_s=1e9 + 1.0, links=links
    )


class _Called:
    """As much of a call's context as traces look at."""

    def __init__(self, place: TraceContext) -> None:
        self._metadata = ((TRACEPARENT, place.traceparent),)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata


class Noted:
    """In place of a feed: keeps the records for this thread."""

    def __init__(self, made: list[Maker]) -> None:
        self._made = made

    def put(self, record: Maker) -> None:
        self._made.append(record)
