"""Accuracy over completions, from the metrics of a run, and two such curves side by side. Pure.

In these runs the odds of a right answer grow like a power of the completions: a straight line through log odds over log
completions leaves no more than the noise of the evaluations. So a level counts as reached where that line reaches the level.
The line is fitted to all evaluations. Where the curve first crosses a level is noise where the curve is flat: from an accuracy
of .85 on, one standard error of an evaluation is a factor of 1.3 in completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.report import Row

LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9)
TARGET, WORST = 0.6, 1.05
"""Of completions(difficulty) / completions(shuffle) to .9, and to any level."""
BEHIND = 0.02
"""How far held-out accuracy may be behind at equal steps: one standard error."""
FEWEST = 4
"""Evaluations that a line is fitted to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """An evaluation on the way."""

    version: int
    completions: float
    """Generated for training up to then: admitted groups x n."""
    seconds: float
    """Since the first admission."""
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reached:
    """Where a line through the evaluations reaches a level of accuracy."""

    completions: float
    seconds: float
    error: float
    """The standard error of log completions, which is about the relative error of `completions`."""


def curve(lines: Sequence[dict[str, Any]], *, n: int) -> list[Point]:
    """The evaluations of a run, oldest first, from the lines of its metrics.jsonl."""
    steps = {line["step"] + 1: line for line in lines if line["kind"] == "step"}
    if not steps:
        return []
    first = steps[min(steps)]
    began_s = first["time_s"] - first["step/wall_s"]
    return [
        Point(
            version=line["version"],
            completions=n * steps[line["version"]]["ledger/admitted_groups"],
            seconds=steps[line["version"]]["time_s"] - began_s,
            accuracy=line["eval/avg_at_n"],
        )
        for line in lines
        if line["kind"] == "eval" and line["version"] in steps
    ]


def reached(points: Sequence[Point], level: float) -> Reached | None:
    """Where the line reaches the level; None before the first evaluation, after the last, and with fewer than FEWEST."""
    if len(points) < FEWEST:
        return None
    accuracies = [point.accuracy for point in points]
    completions, error = _crossing([point.completions for point in points], accuracies, level)
    seconds, _ = _crossing([point.seconds for point in points], accuracies, level)
    if not points[0].completions <= completions <= points[-1].completions:
        return None
    return Reached(completions=completions, seconds=seconds, error=error)


def _crossing(places: Sequence[float], accuracies: Sequence[float], level: float) -> tuple[float, float]:
    """(place, standard error of its logarithm) of a level on the line log odds = a + b x log place; (inf, inf) if b <= 0.

    Least squares, weighted by p (1 - p), which is the inverse variance of the log odds of a mean p, up to a factor; the factor
    comes from what is left. The error is that of the height of the line at the level, over its slope (delta method).
    """
    rates = np.clip(accuracies, 0.005, 0.995)
    odds, weights = np.log(rates / (1 - rates)), rates * (1 - rates)
    logs = np.log(places)
    centre = float(np.average(logs, weights=weights))
    design = np.column_stack([np.ones_like(logs), logs - centre])
    spread = np.linalg.inv(design.T @ (weights[:, None] * design))
    height, slope = spread @ (design.T @ (weights * odds))
    if slope <= 0:
        return math.inf, math.inf
    left = odds - design @ np.array([height, slope])
    off = (math.log(level / (1 - level)) - height) / slope
    variance = (
        float(weights @ left**2) / (len(logs) - 2) * (spread[0, 0] + spread[1, 1] * off**2 + 2 * spread[0, 1] * off)
    )
    return math.exp(centre + off), math.sqrt(max(0.0, variance)) / slope


def compared(what: str, arm: str, ours: Sequence[Point], theirs: Sequence[Point], *, before: int = 0) -> list[Row]:
    """An arm against shuffle: completions to each level that both reach, and accuracy at equal steps.

    `before` completions of ours were generated before the run.
    """
    rows: list[Row] = []
    for level in LEVELS:
        our, their = reached(ours, level), reached(theirs, level)
        if our is None or their is None:
            continue
        ratio, most = (before + our.completions) / their.completions, TARGET if level == LEVELS[-1] else WORST
        named = arm == "difficulty"  # the curriculum has no target
        name = f"{what}: completions to {level}, {arm} / shuffle"
        error = math.hypot(our.error, their.error)
        rows += [
            Row(what=name, value=ratio, unit="", target=f"<= {most}" if named else "", met=ratio <= most or not named),
            Row(what=f"{name}, standard error of its logarithm", value=error, unit="", target="", met=True),
        ]
    theirs_at = {point.version: point.accuracy for point in theirs}
    both = [point.accuracy - theirs_at[point.version] for point in ours if point.version in theirs_at]
    if both:
        ahead = mean(both)
        name = f"{what}: accuracy at equal steps, {arm} - shuffle, mean over the run"
        rows.append(Row(what=name, value=ahead, unit="", target=f">= -{BEHIND}", met=ahead >= -BEHIND))
    return rows
