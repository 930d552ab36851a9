"""Groups a second through the coordinator on one core, against a bare gRPC + Redis relay of the same messages, same run.

Real: the coordinator's process, Redis (append-only file always synced), gRPC over loopback. Simulated: rollouts (each with
a port of its own), reward and learner, which answer at once with made-up samples. Every group has signal, so every one
takes the whole way: admission, generation, scoring, verdict, queue, hand-out, commit; each batch's version is pushed to
every rollout. The peer, benchmarks/simulated/relay.py, makes the same calls and keeps no promise.

The same in samples a second made durable, for people who compare: beside it benchmarks/simulated/producer.py, one process that
writes sample after sample to a Redis of the same kind and does nothing else, and the published figure of such a producer.

One core's rate is groups a CPU second of the conductor's process: on a shared machine it says what the wall clock cannot,
and on an idle one with fast enough neighbours both agree. Redis' own CPU time and the wall clock's rate are printed beside it.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.report import Row
from benchmarks.simulated.learner import whole_batch
from benchmarks.simulated.producer import write_samples
from benchmarks.simulated.stage import Stage, stage
from sluice.config.schema import Config
from sluice.testing.fakes import FakeLearner

VERL = 2_800.0
"""Trajectories a second of one process into verl's durable backend, whose cost is by trajectory and not by byte; measured by
its authors on their machine (https://github.com/verl-project/verl/issues/7579, 11.3: 2,800 to 2,900)."""
MAX_STALENESS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is sent through."""

    name: str
    n: int
    tokens: int
    batch: int
    batches: int
    """Batches measured, after those that warm up."""
    target: float
    """Least share of the relay's rate."""
    warm: int = 1

    @property
    def megabytes(self) -> float:
        """Token ids and log-probabilities of a group."""
        return self.n * self.tokens * 8 / 1e6


SMALL = Load(name="small groups, 8 x 10 tokens", n=8, tokens=10, batch=256, batches=5, target=0.5)
LARGE = Load(name="large groups, 16 x 20,000 tokens", n=16, tokens=20_000, batch=32, batches=4, target=0.6)
CASES = ((SMALL, 1), (SMALL, 16), (SMALL, 64), (SMALL, 256), (LARGE, 16))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Per group, measured from one hand-out to another."""

    cpu_ms: float
    redis_ms: float
    wall_ms: float


def run(cases: Sequence[tuple[Load, int]] = CASES) -> list[Row]:
    """Coordinator and relay in turns for every load and number of rollouts."""
    rows: list[Row] = []
    for load, rollouts in cases:
        coordinator, relay = uvloop.run(_measure(load, rollouts))
        ratio = relay.cpu_ms / coordinator.cpu_ms
        what = f"{load.name}, {rollouts} rollouts (simulated)"
        for name, cost in (("coordinator", coordinator), ("relay", relay)):
            rate = 1e3 / cost.cpu_ms
            rows += [
                Row(what=f"{what}: {name}, one core", value=rate, unit="groups/s", target="", met=True),
                Row(what=f"{what}: {name}, one core", value=rate * load.megabytes, unit="MB/s", target="", met=True),
                Row(what=f"{what}: {name}, wall", value=1e3 / cost.wall_ms, unit="groups/s", target="", met=True),
                Row(what=f"{what}: {name}, Redis", value=cost.redis_ms, unit="CPU ms/group", target="", met=True),
            ]
        least = load.target
        rows.append(
            Row(what=f"{what}: coordinator / relay", value=ratio, unit="", target=f">= {least}", met=ratio >= least)
        )
        rows += _samples(what, load, coordinator)
    for load in {load.name: load for load, _ in cases}.values():
        rows += uvloop.run(_produced(load))
    rows.append(_rate("verl's durable producer, published, on another machine", VERL))
    return rows


def _samples(what: str, load: Load, coordinator: Cost) -> list[Row]:
    return [
        _rate(
            f"{what}: coordinator, one core, admitted, checked, judged and durable", 1e3 * load.n / coordinator.cpu_ms
        ),
        _rate(f"{what}: coordinator, wall, admitted, checked, judged and durable", 1e3 * load.n / coordinator.wall_ms),
    ]


async def _produced(load: Load) -> list[Row]:
    samples = min(2_000, 4_000_000 // load.tokens)
    with tempfile.TemporaryDirectory(prefix="sluice-relay-") as folder:
        async with stage(Path(folder) / "producer") as around:
            cpu_s, wall_s = write_samples(around.redis_url, samples=samples, tokens=load.tokens)
    what = f"{load.name}: a producer that only writes each sample"
    return [_rate(f"{what}, one core", samples / cpu_s), _rate(f"{what}, wall", samples / wall_s)]


def _rate(what: str, value: float) -> Row:
    return Row(what=what, value=value, unit="samples/s", target="", met=True)


async def _measure(load: Load, rollouts: int) -> tuple[Cost, Cost]:
    with tempfile.TemporaryDirectory(prefix="sluice-relay-") as folder:
        return (
            await coordinator_cost(Path(folder) / "coordinator", load, rollouts),
            await _relay(Path(folder) / "relay", load, rollouts),
        )


async def coordinator_cost(folder: Path, load: Load, rollouts: int, **sections: Mapping[str, Any]) -> Cost:
    """What a group costs the coordinator; `sections` are settings beside those of the load."""
    async with stage(folder) as around, around.coordinator(_config(around.model, load, sections)):
        return await _cost(around, load, rollouts)


async def _relay(folder: Path, load: Load, rollouts: int) -> Cost:
    flags = {
        "--rollouts": rollouts,
        "--batch": load.batch,
        "--n": load.n,
        "--max-tokens": load.tokens,
        "--in-flight": load.batch,
        "--live": (MAX_STALENESS + 1) * load.batch,
    }
    async with stage(folder) as around, around.relay(*(str(part) for flag in flags.items() for part in flag)):
        return await _cost(around, load, rollouts)


async def _cost(around: Stage, load: Load, rollouts: int) -> Cost:
    """What a group costs the conductor once it is warm."""
    learner = FakeLearner(model=around.model)
    run = await learner.join(around.address)
    try:
        async with around.fleet(rollouts, "--reward", "--median-tokens", str(load.tokens)):
            marks: list[tuple[float, float, float]] = []
            for step in range(load.warm + load.batches):
                batch = await whole_batch(learner, run, step)
                assert len(batch) - 1 == load.batch
                marks.append((around.conductor_cpu_s(), around.redis_cpu_s(), time.perf_counter()))
                await learner.commit(run, step, batch)
    finally:
        await learner.stop()
    cpu_ms, redis_ms, wall_ms = (
        1e3 * (last - first) / (load.batches * load.batch)
        for first, last in zip(marks[load.warm - 1], marks[-1], strict=True)
    )
    return Cost(cpu_ms=cpu_ms, redis_ms=redis_ms, wall_ms=wall_ms)


def _config(model: Path, load: Load, sections: Mapping[str, Any]) -> Config:
    return Config.model_validate(
        {
            "run": {"total_steps": 1000},
            "model": {"path": str(model)},
            "data": {
                "train_files": ["mixadd3:train"],
                "train_batch_size": load.batch,
                "max_prompt_length": 16,
                "max_response_length": load.tokens,
                "template": "none",
            },
            "rollout": {"n": load.n},
            "coordinator": {"max_staleness": MAX_STALENESS, "heartbeat_timeout_s": 60.0},
            "launch": {"check_reward": False},
            "eval": {"every_steps": 0},
            **sections,
        }
    )
