"""Evaluations of several sets, apart: which set stands for the run where one figure is shown, and figures as short text."""

import math
from collections.abc import Sequence

from sluice.report.figures import fraction
from sluice.run_dir.json_lines import JsonObject
from sluice.v1 import coordinator_pb2 as pb


def by_set(evaluations: Sequence[pb.Evaluation]) -> dict[str, list[pb.Evaluation]]:
    """The evaluations of each set, oldest first, under the set's name; empty for the default set."""
    sets: dict[str, list[pb.Evaluation]] = {}
    for evaluation in evaluations:
        sets.setdefault(evaluation.set, []).append(evaluation)
    return sets


def headline(evaluations: Sequence[pb.Evaluation]) -> list[pb.Evaluation]:
    """The evaluations that stand for the run: those of the default set, or of the first set where there is no default one."""
    sets = by_set(evaluations)
    return sets.get("") or next(iter(sets.values()), [])


def within(value: float, evaluation: pb.Evaluation, interval: str) -> str:
    """A fraction with its interval, `.31 [.27, .35]`; without one the fraction alone."""
    if not evaluation.HasField(interval):  # type: ignore[arg-type]
        return fraction(value)
    ends: pb.Interval = getattr(evaluation, interval)
    return f"{fraction(value)} [{fraction(ends.low)}, {fraction(ends.high)}]"


def accuracy(evaluation: pb.Evaluation | None) -> JsonObject:
    """An evaluation in summary.json; every figure is null without one."""
    if evaluation is None:
        evaluation = pb.Evaluation(avg_at_n=math.nan, pass_at_n=math.nan, greedy=math.nan)
    return {
        "greedy": _finite(evaluation.greedy),
        "avg": _finite(evaluation.avg_at_n),
        "n": evaluation.n or None,
        "avg_interval": _ends(evaluation, "avg_interval"),
        "pass": _finite(evaluation.pass_at_n),
        "pass_interval": _ends(evaluation, "pass_interval"),
        "maj": _finite(evaluation.maj_at_n) if evaluation.HasField("maj_at_n") else None,
        "maj_interval": _ends(evaluation, "maj_interval"),
        "tool_use": _finite(evaluation.tool_use) if evaluation.HasField("tool_use") else None,
    }


def change(evaluations: Sequence[pb.Evaluation]) -> JsonObject:
    """The first evaluation and the last; the last is null unless there are two."""
    return {
        "before": accuracy(evaluations[0] if evaluations else None),
        "after": accuracy(evaluations[-1] if len(evaluations) > 1 else None),
    }


def _ends(evaluation: pb.Evaluation, interval: str) -> list[float] | None:
    if not evaluation.HasField(interval):  # type: ignore[arg-type]
        return None
    ends: pb.Interval = getattr(evaluation, interval)
    return [ends.low, ends.high]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
