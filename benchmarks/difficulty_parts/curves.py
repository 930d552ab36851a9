"""Accuracy over completions, from the metrics of a run, and two such curves side by side. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.report import Row

LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9)
TARGET, WORST = 0.6, 1.05
"""Of completions(difficulty) / completions(shuffle) to .9, and to any level."""
BEHIND = 0.02
"""How far held-out accuracy may be behind at equal steps: one standard error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """An evaluation on the way."""

    version: int
    completions: float
    """Generated for training up to then: admitted groups x n."""
    seconds: float
    """Since the first admission."""
    accuracy: float


def curve(lines: Sequence[dict[str, Any]], *, n: int, before: int = 0) -> list[Point]:
    """The evaluations of a run, oldest first, from the lines of its metrics.jsonl; `before` were generated before it."""
    steps = {line["step"] + 1: line for line in lines if line["kind"] == "step"}
    if not steps:
        return []
    first = steps[min(steps)]
    began_s = first["time_s"] - first["step/wall_s"]
    return [
        Point(
            version=line["version"],
            completions=before + n * steps[line["version"]]["ledger/admitted_groups"],
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


def compared(what: str, arm: str, ours: Sequence[Point], theirs: Sequence[Point]) -> list[Row]:
    """An arm against shuffle: completions to each level that both reach, and accuracy at equal steps."""
    rows: list[Row] = []
    for level in LEVELS:
        ends = [reached(points, level) for points in (ours, theirs)]
        if ends[0] is None or ends[1] is None:
            continue
        ratio, most = ends[0][0] / ends[1][0], TARGET if level == LEVELS[-1] else WORST
        named = arm == "difficulty"  # the curriculum has no target
        rows.append(
            Row(
                what=f"{what}: completions to {level}, {arm} / shuffle",
                value=ratio,
                unit="",
                target=f"<= {most}" if named else "",
                met=ratio <= most or not named,
            )
        )
    theirs_at = {point.version: point.accuracy for point in smoothed(theirs)}
    both = [point.accuracy - theirs_at[point.version] for point in smoothed(ours) if point.version in theirs_at]
    if both:
        ahead = mean(both)
        name = f"{what}: accuracy at equal steps, {arm} - shuffle, mean over the run"
        rows.append(Row(what=name, value=ahead, unit="", target=f">= -{BEHIND}", met=ahead >= -BEHIND))
    return rows
