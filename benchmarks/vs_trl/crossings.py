"""What a curve says: how much of something it took to reach an accuracy. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.vs_trl.records import accuracies, moments

Cost = Literal["seconds", "completions", "cpu_seconds"]
COSTS: tuple[Cost, ...] = ("seconds", "completions", "cpu_seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One run, at the moments whose weights were evaluated; all of one length, in order."""

    costs: Mapping[Cost, Sequence[float]]
    avg: Sequence[float]
    greedy: Sequence[float]


def curve(run: Path, split: str) -> Curve:
    """The curve of a run that was evaluated on `split`."""
    read = accuracies(run, split)
    seen = [moment for moment in moments(run) if moment.batches in read]
    return Curve(
        costs={cost: [getattr(moment, cost) for moment in seen] for cost in COSTS},
        avg=[read[moment.batches].avg for moment in seen],
        greedy=[read[moment.batches].greedy for moment in seen],
    )


def first_at(values: Sequence[float], costs: Sequence[float], level: float) -> float:
    """The cost at the first value >= `level`; inf when there is none.

    A first crossing is optimistic, since it takes the best of noisy readings - on both sides alike.
    """
    return next((cost for value, cost in zip(values, costs, strict=True) if value >= level), math.inf)


def median_curve(curves: Sequence[Curve], cost: Cost) -> tuple[np.ndarray, np.ndarray]:
    """Median avg over runs on a grid of costs, up to where the shortest run ends: [100], [100] float64."""
    grid = np.linspace(0, min(run.costs[cost][-1] for run in curves), 100)
    return grid, np.median([np.interp(grid, run.costs[cost], run.avg) for run in curves], axis=0)
