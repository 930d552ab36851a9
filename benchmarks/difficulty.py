"""`data.sampler: difficulty` on prompts that come again: completions and seconds to each accuracy, against `shuffle` and a
curriculum.

The data are fixed sets of 400 sums of the demo's task: `sums`, all of which can be learnt, and `half`, where every second one
has an answer that is no sum, as prompts that are beyond a policy; every run is a whole `sluice demo` on a set: real services,
real vLLM, the cached base. The curriculum is the set in the order of the base's measured pass rate, easiest first, and the
completions of that measurement count. Accuracy is avg@2 on 128 held-out prompts every five steps (standard error 2 to 3
points); where a level is reached is read from a line through all evaluations of the run (difficulty_parts/curves.py). An arm
takes two to four minutes of two idle cores. The time of one draw is measured as well, from a set as small and from a million
rows.

    python -m benchmarks.difficulty --seeds 1 --sets sums --arms shuffle difficulty --folder DIR

runs a part; a run that has ended in DIR is read and not made again. Seconds are only comparable on an idle machine: `--busy`
leaves them out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo_seeds import run_demo
from benchmarks.difficulty_parts.curves import LEVELS, Point, compared, curve, reached
from benchmarks.difficulty_parts.draws import draw_rows
from benchmarks.difficulty_parts.sets import PROMPTS, set_of, write_set
from benchmarks.report import Row, show, write
from sluice.cli.up import demo_base_dir

NAME = "difficulty"
SEEDS = (1, 2, 3)
SETS = {"sums": ("run.total_steps=100",), "half": ("run.total_steps=30", "eval.prompts=64")}
"""Sets and the settings of their runs: where half of the prompts are dead, a step takes twice the groups."""
ARMS = ("shuffle", "difficulty", "curriculum")
N = 8
SETTINGS = (
    *("network.coordinator_port=0", f"rollout.n={N}"),
    *("eval.every_steps=5", "eval.small_prompts=128", "eval.small_n=2", "eval.greedy=false"),
)


def run(
    seeds: Sequence[int] = SEEDS,
    arms: Sequence[str] = ARMS,
    sets: Sequence[str] = tuple(SETS),
    folder: Path | None = None,
    busy: bool = False,
) -> list[Row]:
    """Every arm with every seed on every set; in `folder`, where runs may lie already. `busy` leaves seconds out."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="sluice-difficulty-") as made:
            return run(seeds, arms, sets, Path(made), busy)
    rows = draw_rows()
    for name in sets:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        write_set(place / "set.jsonl", set_of(name))
        for seed in seeds:
            rows += _of_seed(place, seed, arms)
    return [row for row in rows if not (busy and row.unit == "s")]


def _of_seed(place: Path, seed: int, arms: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    curves, before = dict[str, list[Point]](), dict[str, int]()
    for arm in arms:
        run_dir, extra = place / f"{arm}-{seed}", 0
        settings = [*SETS[place.name], f"data.train_files=[{place / 'set.jsonl'}]"]
        if arm == "difficulty":
            settings.append("data.sampler=difficulty")
        if arm == "curriculum":
            settings[-1:] = [f"data.train_files=[{_in_order_of_difficulty(place)}]", "data.shuffle=false"]
            extra = PROMPTS * N
        _demo(run_dir, seed, settings)
        before[arm], curves[arm] = extra, curve(_lines(run_dir), n=N)
        rows += _rows_of(f"{place.name}, seed {seed}, {arm}", run_dir, curves[arm], before=extra)
    for arm in ("difficulty", "curriculum"):
        if {"shuffle", arm} <= curves.keys():
            what = f"{place.name}, seed {seed}"
            rows += compared(what, arm, curves[arm], curves["shuffle"], before=before[arm])
    return rows


def _rows_of(what: str, run_dir: Path, points: Sequence[Point], *, before: int) -> list[Row]:
    summary = json.loads((run_dir / "summary.json").read_text())
    groups = summary["groups"]
    facts = [("avg@8 after", summary["accuracy"]["after"]["avg"], ""), ("groups trained / admitted", _kept(groups), "")]
    for level in LEVELS:
        if (end := reached(points, level)) is not None:
            facts += [
                (f"completions to {level}", before + end.completions, ""),
                (f"seconds to {level}", end.seconds, "s"),
            ]
    return [
        Row(what=f"{what}: {name}", value=float(value), unit=unit, target="", met=True) for name, value, unit in facts
    ]


def _kept(groups: dict[str, Any]) -> float:
    return groups["trained"] / groups["admitted"]


def _in_order_of_difficulty(place: Path) -> Path:
    """The set, the prompts that the base gets right most often first. Measured once a folder: n samples a prompt."""
    ordered, measured = place / "easiest_first.jsonl", place / "base.parquet"
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
        str(place / "set.jsonl"),
    ]
    command += ["-n", str(N), "--no-greedy", "--parquet", str(measured), "--set", "data.template=none"]
    command += ["--set", "data.max_prompt_length=16", "--set", "data.max_response_length=72"]
    subprocess.run([*command, "--set", "model.dtype=float32"], check=True, stdout=subprocess.DEVNULL)
    right = {row["prompt"]: row["accuracy"] for row in pq.read_table(measured).to_pylist()}
    rows = list(enumerate(set_of(place.name)))
    write_set(ordered, [row for _, row in sorted(rows, key=lambda numbered: -right[numbered[0]])])
    return ordered


def _demo(run_dir: Path, seed: int, settings: Sequence[str]) -> None:
    if (run_dir / "summary.json").exists():
        return
    run_demo(run_dir, seed=seed, settings=(*SETTINGS, *settings))


def _lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def main() -> int:
    """Runs a part of the benchmark. Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--busy", action="store_true", help="leave seconds out: others compute on this machine")
    parser.add_argument("--folder", type=Path, help="where runs are kept and found again")
    args = parser.parse_args()
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    rows = run(args.seeds, args.arms, args.sets, args.folder, args.busy)
    show(NAME, rows)
    print(f"written to {write(NAME, rows)}")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
