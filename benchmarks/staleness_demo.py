"""What `coordinator.max_staleness` does to the demo: time, accuracy and the ages that were trained, at 0, 1, 2, 4 and 8.

Whole `sluice demo` runs on one seed: real services, real vLLM, the same warmed-up base and data. Accuracy is avg@8 at
temperature 1 on held-out prompts; "steps to 0.8" reads the small evaluations on the way, every ten steps, avg@4 on 64 prompts
(standard error about 2.5 points), so it is a first crossing and coarse. Wall times are only comparable with each other: the
machine's load at the start of each run is a row. Takes ten minutes or more on 2 cores.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo_seeds import run_demo
from benchmarks.report import Row

AGES = (0, 1, 2, 4, 8)
SEED = 0
ENOUGH = 0.8
BOUND_TARGET = "<= max_staleness"


def run(ages: Sequence[int] = AGES, settings: Sequence[str] = ()) -> list[Row]:
    """One run an age bound; `settings` are more overrides of the demo's recipe."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="sluice-sweep-") as folder:
        for age in ages:
            load = os.getloadavg()[0]
            run_dir = Path(folder) / f"age-{age}"
            _demo(run_dir, age, settings)
            rows += _rows(age, load, json.loads((run_dir / "summary.json").read_text()), [*_lines(run_dir)])
    return rows


def _rows(age: int, load: float, summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    oldest, mean = summary["staleness"]["max"], summary["staleness"]["mean"]
    crossed = _steps_to(lines)
    what = f"max_staleness {age}"
    rows = [
        Row(
            what=f"{what}: training, {summary['steps']} steps",
            value=summary["train_wall_s"],
            unit="s",
            target="",
            met=True,
        ),
        Row(what=f"{what}: load average at its start", value=load, unit="", target="", met=True),
        Row(what=f"{what}: avg@8 after", value=summary["accuracy"]["after"]["avg"], unit="", target="", met=True),
        Row(what=f"{what}: greedy after", value=summary["accuracy"]["after"]["greedy"], unit="", target="", met=True),
        Row(what=f"{what}: mean age trained", value=mean, unit="steps", target="", met=True),
        Row(what=f"{what}: largest age trained", value=oldest, unit="steps", target=BOUND_TARGET, met=oldest <= age),
    ]
    if crossed is not None:
        rows.append(
            Row(what=f"{what}: steps to avg@4 {ENOUGH}", value=float(crossed), unit="steps", target="", met=True)
        )
    return rows


def _steps_to(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The version of the first evaluation on the way that reached `ENOUGH`."""
    reached = [line["version"] for line in lines if line["kind"] == "eval" and line["eval/avg_at_n"] >= ENOUGH]
    return min(reached, default=None)


def _lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def _demo(run_dir: Path, age: int, settings: Sequence[str]) -> None:
    run_demo(run_dir, seed=SEED, settings=(f"coordinator.max_staleness={age}", "network.coordinator_port=0", *settings))
