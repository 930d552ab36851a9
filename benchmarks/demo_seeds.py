"""The demo's claim on three seeds: held-out accuracy before and after 100 steps, and the wall time of training.

Each seed is a whole `sluice demo` run: real services, real vLLM, the fresh split. Takes about ten minutes on 2 cores.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.report import Row

SEEDS = (0, 1, 2)


def run(seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Runs every seed and compares with the targets."""
    rows: list[Row] = []
    for seed in seeds:
        summary = demo_summary("demo", seed=seed)
        before, after = summary["accuracy"]["before"], summary["accuracy"]["after"]
        wall = summary["train_wall_s"]
        rows += [
            Row(
                what=f"seed {seed}: avg@8 before",
                value=before["avg"],
                unit="",
                target="< 0.35",
                met=before["avg"] < 0.35,
            ),
            Row(
                what=f"seed {seed}: avg@8 after", value=after["avg"], unit="", target=">= 0.80", met=after["avg"] >= 0.8
            ),
            Row(what=f"seed {seed}: greedy before", value=before["greedy"], unit="", target="about 0.72", met=True),
            Row(
                what=f"seed {seed}: greedy after",
                value=after["greedy"],
                unit="",
                target=">= 0.94",
                met=after["greedy"] >= 0.94,
            ),
            Row(
                what=f"seed {seed}: training, {summary['steps']} steps",
                value=wall,
                unit="s",
                target="< 180 s",
                met=wall < 180,
            ),
        ]
    return rows


def demo_summary(command: str, *, seed: int) -> dict:
    """The summary.json of a whole run of `sluice COMMAND`."""
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        run_dir = Path(folder) / f"seed-{seed}"
        run_demo(run_dir, seed=seed, settings=["network.coordinator_port=0"], command=command)
        return json.loads((run_dir / "summary.json").read_text())


def run_demo(run_dir: Path, *, seed: int, settings: Iterable[str], command: str = "demo") -> None:
    """A whole run of `sluice COMMAND` with settings `KEY=VALUE`. Raises CalledProcessError when the run fails."""
    line = [sys.executable, "-m", "sluice.cli.main", command, "--plain", "--seed", str(seed), "--run-dir", str(run_dir)]
    for setting in settings:
        line += ["--set", setting]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
