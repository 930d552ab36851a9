"""`data.sampler: difficulty` on prompts that come again: completions and seconds to each accuracy, against `shuffle` and a
curriculum.

The data are a fixed set of 400 sums of the demo's task; every run is a whole `sluice demo` on it: real services, real vLLM,
the cached base. The curriculum is the same set in the order of the base's measured pass rate, easiest first, and the
completions of that measurement count. Accuracy is avg@2 on 128 held-out prompts every five steps, as a mean over three
evaluations (standard error about 2 points). An arm takes two minutes of two idle cores.

    python -m benchmarks.difficulty --seeds 1 --arms shuffle difficulty --folder DIR

runs a part; a run that has ended in DIR is read and not made again. Seconds are only comparable on an idle machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.report import Row, show, write
from sluice.cli.up import demo_base_dir
from sluice.tasks import mixadd3

NAME = "difficulty"
SEEDS = (1, 2, 3)
ARMS = ("shuffle", "difficulty", "curriculum")
LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9)
PROMPTS, N, STEPS = 400, 8, 100
TARGET, WORST = 0.6, 1.05
"""Of completions(difficulty) / completions(shuffle) to .9, and to any level."""
BEHIND = 0.02
"""How far held-out accuracy may be behind at equal steps: one standard error."""
SETTINGS = (
    *("network.coordinator_port=0", f"run.total_steps={STEPS}", f"rollout.n={N}"),
    *("eval.every_steps=5", "eval.small_prompts=128", "eval.small_n=2", "eval.greedy=false"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """An evaluation on the way."""

    version: int
    completions: float
    """Generated for training up to then: admitted groups x n."""
    seconds: float
    """Since the first admission."""
    accuracy: float


def run(seeds: Sequence[int] = SEEDS, arms: Sequence[str] = ARMS, folder: Path | None = None) -> list[Row]:
    """Every arm with every seed; in `folder`, where runs may lie already."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sluice-difficulty-") as made:
            return run(seeds, arms, Path(made))
    sums = folder / "sums.jsonl"
    write_set(sums, sums_set())
    rows: list[Row] = []
    for seed in seeds:
        curves: dict[str, list[Point]] = {}
        for arm in arms:
            extra, settings = 0, [f"data.train_files=[{sums}]"]
            if arm == "difficulty":
                settings.append("data.sampler=difficulty")
            if arm == "curriculum":
                ordered = _in_order_of_difficulty(folder, sums)
                settings, extra = [f"data.train_files=[{ordered}]", "data.shuffle=false"], PROMPTS * N
            run_dir = folder / f"{arm}-{seed}"
            _demo(run_dir, seed, settings)
            curves[arm] = curve(_lines(run_dir), before=extra)
            rows += _rows_of(f"seed {seed}, {arm}", run_dir, curves[arm])
        if {"shuffle", "difficulty"} <= curves.keys():
            rows += compared(f"seed {seed}", curves["difficulty"], curves["shuffle"])
    return rows


def sums_set() -> list[dict[str, Any]]:
    """The first PROMPTS different sums of the training split, as rows."""
    texts: dict[str, None] = {}
    index = 0
    while len(texts) < PROMPTS:
        texts[mixadd3.prompt_at(seed=0, index=index, split="train")] = None
        index += 1
    return [
        {"data_source": mixadd3.DATA_SOURCE, "prompt": text, "reward_model": {"ground_truth": mixadd3.answer(text)}}
        for text in texts
    ]


def write_set(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as data.train_files takes them."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def curve(lines: Sequence[dict[str, Any]], *, before: int = 0) -> list[Point]:
    """The evaluations of a run, oldest first, from the lines of its metrics.jsonl; `before` were generated before it."""
    steps = {line["step"] + 1: line for line in lines if line["kind"] == "step"}
    if not steps:
        return []
    first = steps[min(steps)]
    began_s = first["time_s"] - first["step/wall_s"]
    return [
        Point(
            version=line["version"],
            completions=before + N * steps[line["version"]]["ledger/admitted_groups"],
            seconds=steps[line["version"]]["time_s"] - began_s,
            accuracy=line["eval/avg_at_n"],
        )
        for line in lines
        if line["kind"] == "eval" and line["version"] in steps
    ]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Each accuracy as the mean with its neighbours', because an evaluation on the way is small."""
    near = [points[max(0, place - 1) : place + 2] for place in range(len(points))]
    return [
        Point(
            version=one.version,
            completions=one.completions,
            seconds=one.seconds,
            accuracy=mean(other.accuracy for other in others),
        )
        for one, others in zip(points, near, strict=True)
    ]


def reached(points: Sequence[Point], level: float) -> tuple[float, float] | None:
    """(completions, seconds) at which the smoothed curve first reaches the level, on a line between evaluations."""
    former: Point | None = None
    for point in smoothed(points):
        if point.accuracy >= level:
            if former is None:
                return point.completions, point.seconds
            part = (level - former.accuracy) / (point.accuracy - former.accuracy)
            return (
                former.completions + part * (point.completions - former.completions),
                former.seconds + part * (point.seconds - former.seconds),
            )
        former = point
    return None


def compared(what: str, ours: Sequence[Point], theirs: Sequence[Point]) -> list[Row]:
    """Difficulty against shuffle: completions to each level that both reach, and accuracy at equal steps."""
    rows: list[Row] = []
    for level in LEVELS:
        ends = [reached(points, level) for points in (ours, theirs)]
        if ends[0] is None or ends[1] is None:
            continue
        ratio, most = ends[0][0] / ends[1][0], TARGET if level == LEVELS[-1] else WORST
        rows.append(
            Row(
                what=f"{what}: completions to {level}, difficulty / shuffle",
                value=ratio,
                unit="",
                target=f"<= {most}",
                met=ratio <= most,
            )
        )
    theirs_at = {point.version: point.accuracy for point in smoothed(theirs)}
    both = [point.accuracy - theirs_at[point.version] for point in smoothed(ours) if point.version in theirs_at]
    if both:
        ahead = mean(both)
        name = f"{what}: accuracy at equal steps, difficulty - shuffle, mean over the run"
        rows.append(Row(what=name, value=ahead, unit="", target=f">= -{BEHIND}", met=ahead >= -BEHIND))
    return rows


def _rows_of(what: str, run_dir: Path, points: Sequence[Point]) -> list[Row]:
    summary = json.loads((run_dir / "summary.json").read_text())
    groups = summary["groups"]
    facts = [("avg@8 after", summary["accuracy"]["after"]["avg"], ""), ("groups trained / admitted", _kept(groups), "")]
    for level in LEVELS:
        if (end := reached(points, level)) is not None:
            facts += [(f"completions to {level}", end[0], ""), (f"seconds to {level}", end[1], "s")]
    return [
        Row(what=f"{what}: {name}", value=float(value), unit=unit, target="", met=True) for name, value, unit in facts
    ]


def _kept(groups: dict[str, Any]) -> float:
    return groups["trained"] / groups["admitted"]


def _in_order_of_difficulty(folder: Path, sums: Path) -> Path:
    """The set, the prompts that the base gets right most often first. Measured once a folder: n samples a prompt."""
    ordered, measured = folder / "easiest_first.jsonl", folder / "base.parquet"
    if ordered.exists():
        return ordered
    import pyarrow.parquet as pq

    command = [
        sys.executable,
        "-m",
        "sluice.cli.main",
        "evaluate",
        "--model",
        str(demo_base_dir()),
        "--data",
        str(sums),
    ]
    command += ["-n", str(N), "--no-greedy", "--parquet", str(measured), "--set", "data.template=none"]
    command += ["--set", "data.max_prompt_length=16", "--set", "data.max_response_length=72"]
    subprocess.run([*command, "--set", "model.dtype=float32"], check=True, stdout=subprocess.DEVNULL)
    right = {row["prompt"]: row["accuracy"] for row in pq.read_table(measured).to_pylist()}
    rows = list(enumerate(sums_set()))
    write_set(ordered, [row for _, row in sorted(rows, key=lambda numbered: -right[numbered[0]])])
    return ordered


def _demo(run_dir: Path, seed: int, settings: Sequence[str]) -> None:
    if (run_dir / "summary.json").exists():
        return
    command = [
        sys.executable,
        "-m",
        "sluice.cli.main",
        "demo",
        "--plain",
        "--seed",
        str(seed),
        "--run-dir",
        str(run_dir),
    ]
    for setting in (*SETTINGS, *settings):
        command += ["--set", setting]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    """Runs a part of the benchmark. Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--folder", type=Path, help="where runs are kept and found again")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    rows = run(args.seeds, args.arms, args.folder)
    show(NAME, rows)
    print(f"written to {write(NAME, rows)}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
