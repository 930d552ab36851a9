"""What the schedules of benchmarks/overlap.py cost in accuracy: whole demo runs, synchronous and not, three seeds each.

Real services, real vLLM, the same warmed-up base and data, 100 steps. `data.gen_batch_size` is two batches everywhere, so that
synchronous runs over-generate and refills have room to start ahead. Accuracy is avg@8 at temperature 1 on held-out prompts. A
schedule is level with the synchronous one when its mean is less than two standard errors of the difference below; with three
seeds that is some five points. Seconds say nothing here, because rollout and learner share the cores.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo_seeds import run_demo
from benchmarks.report import Row
from benchmarks.simulated.pace import Schedule

SCHEDULES = (
    Schedule(max_staleness=0),
    Schedule(max_staleness=1, refill_confidence=0.9),
    Schedule(max_staleness=2, refill_confidence=0.9),
)
"""The first is what the others are compared with: those that docs/staleness.md recommends."""
SEEDS = (0, 1, 2)
BATCH = 20
"""The demo's groups a step."""


def run(
    schedules: Sequence[Schedule] = SCHEDULES, seeds: Sequence[int] = SEEDS, settings: Sequence[str] = ()
) -> list[Row]:
    """Every schedule on every seed; `settings` are more overrides of the demo's recipe."""
    rows: list[Row] = []
    level: list[float] = []
    for way in schedules:
        summaries = [_demo(way, seed, settings) for seed in seeds]
        reached = [summary["accuracy"]["after"]["avg"] for summary in summaries]
        level = level or reached
        rows += _rows(str(way), way, summaries, reached, level)
    return rows


def _rows(
    what: str, way: Schedule, summaries: Sequence[Any], reached: Sequence[float], level: Sequence[float]
) -> list[Row]:
    least = statistics.mean(level) - 2 * _error(reached, level)
    mean = statistics.mean(reached)
    target = f">= {least:.3f}" if reached is not level else ""
    rows = [
        Row(
            what=f"{what}: avg@8 after, mean of {len(reached)} seeds",
            value=mean,
            unit="",
            target=target,
            met=mean >= least,
        ),
        Row(what=f"{what}: avg@8 after, worst seed", value=min(reached), unit="", target="", met=True),
        Row(what=f"{what}: avg@8 after, best seed", value=max(reached), unit="", target="", met=True),
    ]
    ages = [summary["staleness"] for summary in summaries]
    oldest, mean_age = max(age["max"] for age in ages), statistics.mean(age["mean"] for age in ages)
    met = oldest <= way.max_staleness
    ended = [summary["groups"] for summary in summaries]
    trained = sum(groups["trained"] for groups in ended)
    unused = sum(groups["surplus"] + groups["stale"] for groups in ended)
    return [
        *rows,
        Row(what=f"{what}: mean age trained", value=mean_age, unit="steps", target="", met=True),
        Row(what=f"{what}: largest age trained", value=oldest, unit="steps", target=f"<= {way.max_staleness}", met=met),
        Row(what=f"{what}: kept groups trained", value=trained / (trained + unused), unit="", target="", met=True),
    ]


def _error(one: Sequence[float], other: Sequence[float]) -> float:
    """The standard error of the difference of two means; 0 where one seed tells none."""
    if min(len(one), len(other)) < 2:
        return 0.0
    return (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5


def _demo(way: Schedule, seed: int, settings: Sequence[str]) -> Any:
    """The summary of one run."""
    with tempfile.TemporaryDirectory(prefix="sluice-accuracy-") as folder:
        run_dir = Path(folder) / "run"
        chosen = {
            "coordinator.max_staleness": way.max_staleness,
            "coordinator.refill_confidence": way.refill_confidence,
            "data.gen_batch_size": way.waves * BATCH,
            "network.coordinator_port": 0,
        }
        run_demo(run_dir, seed=seed, settings=(*(f"{key}={value}" for key, value in chosen.items()), *settings))
        return json.loads((run_dir / "summary.json").read_text())
