"""The demo of two turns on three seeds: accuracy and use of the calculator before and after, and the time of training.

Each seed is a whole `sluice demo-turns` run on the cached base: real services, real vLLM, the fresh split. Takes about ten
minutes on 2 cores.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.demo_seeds import SEEDS, demo_summary
from benchmarks.report import Row


def run(seeds: Sequence[int] = SEEDS) -> list[Row]:
    """Runs every seed and compares with the targets."""
    return [row for seed in seeds for row in _rows(seed, demo_summary("demo-turns", seed=seed))]


def _rows(seed: int, summary: Mapping[str, Any]) -> list[Row]:
    before, after = summary["accuracy"]["before"], summary["accuracy"]["after"]
    limits = {"avg": ("avg@8", 0.3, 0.9), "tool_use": ("tool use", 0.5, 0.95), "greedy": ("greedy", 0.1, 0.9)}
    rows: list[Row] = []
    for key, (what, most_before, least_after) in limits.items():
        for when, value, met, target in (
            ("before", before[key], before[key] < most_before, f"< {most_before}"),
            ("after", after[key], after[key] >= least_after, f">= {least_after}"),
        ):
            rows.append(Row(what=f"seed {seed}: {what} {when}", value=value, unit="", target=target, met=met))
    for what, seconds, most in (("training", summary["train_wall_s"], 180), ("whole run", summary["wall_s"], 300)):
        name = f"seed {seed}: {what}, {summary['steps']} steps"
        rows.append(Row(what=name, value=seconds, unit="s", target=f"< {most} s", met=seconds < most))
    return rows
