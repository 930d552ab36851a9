"""Tables, benchmarks/results/vs_trl*.json and docs/vs-trl*.png."""

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.vs_trl.crossings import COSTS, Cost, Curve, curve, first_at
from benchmarks.vs_trl.figure import draw
from benchmarks.vs_trl.race import RACE_SPLIT, Plan
from benchmarks.vs_trl.records import facts
from benchmarks.vs_trl.tasks import TASKS, Task

_ROOT = Path(__file__).parents[2]
_TASKS = {"demo": "The demo's task", "sums": "SmolLM2-135M learns sums"}
_TITLES = {"seconds": "seconds to reach", "completions": "completions to reach", "cpu_seconds": "CPU-seconds to reach"}


def publish(
    runs: Mapping[str, Sequence[Path]],
    *,
    plan: Plan,
    speeds: Mapping[str, float],
    scores: Mapping[float, float],
    report: Path | None,
) -> None:
    """Prints the tables and writes JSON and picture, into `report` or where the repository keeps them."""
    task = TASKS[plan.terms.task]
    sides = {side: [curve(run, RACE_SPLIT) for run in folders] for side, folders in runs.items()}
    for cost in COSTS:
        Console().print(_table(task, sides, cost))
    content = {
        "machine": _machine(),
        "terms": asdict(plan.terms) | {"base": Path(plan.terms.base).name},
        "tuning": {
            "trl_completions_per_s": dict(speeds),
            "trl_mean_avg_by_lr": {f"{lr:g}": s for lr, s in scores.items()},
        },
        "sides": {
            side: [_run_facts(task, folder, run) for folder, run in zip(runs[side], sides[side], strict=True)]
            for side in sides
        },
    }
    tail = "" if task.name == "demo" else f"_{task.name}"
    results = (report or _ROOT / "benchmarks" / "results") / f"vs_trl{tail}.json"
    results.write_text(json.dumps(content, indent=2) + "\n")
    picture = (report or _ROOT / "docs") / f"vs-trl{tail.replace('_', '-')}.png"
    title = f"{_TASKS[task.name]}: Sluice and TRL's GRPOTrainer on {os.cpu_count()} cores"
    draw(sides, picture, title=title, samples=task.samples)
    print(f"written to {results} and {picture}")


def _table(task: Task, sides: Mapping[str, Sequence[Curve]], cost: Cost) -> Table:
    """A row a level: the median of each side, each run in brackets, and TRL's median over Sluice's."""
    table = Table("", *sides, "TRL / Sluice", title=_TITLES[cost], title_justify="left")
    for kind, level in task.levels:
        reached = {side: [_reached(run, cost, kind, level) for run in curves] for side, curves in sides.items()}
        medians = {side: statistics.median(values) for side, values in reached.items()}
        cells = [f"{_number(medians[side])} ({', '.join(map(_number, values))})" for side, values in reached.items()]
        both = math.isfinite(medians["Sluice"]) and math.isfinite(medians["TRL"])
        ratio = f"{medians['TRL'] / medians['Sluice']:.2f}" if both and medians["Sluice"] else "-"
        table.add_row(f"{f'avg@{task.samples}' if kind == 'avg' else kind} {level:.1f}", *cells, ratio)
    return table


def _run_facts(task: Task, folder: Path, run: Curve) -> dict[str, Any]:
    """A run in the JSON: what done.json says, crossings (null: not reached) and the curve."""
    known = facts(folder)
    assert known is not None
    return {
        "name": folder.name,
        "lr": known["terms"]["lr"],
        **{key: value for key, value in known.items() if key not in ("terms", "log")},
        "reached": {
            cost: {f"{kind} {level}": _finite(_reached(run, cost, kind, level)) for kind, level in task.levels}
            for cost in COSTS
        },
        "curve": {
            **{cost: [round(v, 2) for v in run.costs[cost]] for cost in COSTS},
            "avg": run.avg,
            "greedy": run.greedy,
        },
    }


def _reached(run: Curve, cost: Cost, kind: str, level: float) -> float:
    return first_at(getattr(run, kind), run.costs[cost], level)


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.partition(": ")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "-"


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None
