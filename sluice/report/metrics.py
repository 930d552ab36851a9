"""Reads RUN/metrics.jsonl into columns.

One JSON object a line: `{"kind": "step", "step": k, "time_s": ..., NAME: value, ...}` for every trained step and
`{"kind": "eval", "version": v, "time_s": ..., NAME: value, ...}` for every evaluation, with `set` for one of a named set. The
line of a step also has
`lineage`, `weights_digest` and `batch_digest`: texts, not columns. A learner that was restored trains some steps again;
the later line of a step (or of an evaluated version) replaces the earlier line, so the columns show the surviving history.
`{"kind": "rollback", "to": c, "lineage": l, ...}` gives up steps from c on and versions behind c of lineages before l: the
lines of these steps and versions do not count. Lines of an unknown kind are ignored.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sluice.lineage import FIRST, Rollback, is_given_up
from sluice.run_dir.json_lines import JsonObject, json_lines, read_json_lines

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
"""Groups for people (samples.py), with lines that are thinned like those of metrics."""

ROLLBACK = "rollback"
"""The kind of line that a rollback leaves."""

_PLACE = ("kind", "step", "lineage", "time_s", "step/wall_s")

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetrics:
    """Steps sorted by number, evaluations sorted by version."""

    steps: tuple[Row, ...]
    """One row a trained step; `step` is 0-based."""
    evaluations: tuple[Row, ...]
    """One row an evaluated version of the default set; `version` is its number."""
    sets: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Likewise of each set of eval.sets."""
    torn_lines: int
    """Lines lost to a killed writer."""


def read_metrics(run_dir: Path) -> RunMetrics:
    """The metrics of a run; empty for a run without metrics yet.

    Raises:
        ValueError: a line is an object without the number that places it.
    """
    path = run_dir / METRICS_FILE
    lines = read_json_lines(path)
    return metrics_of(lines.objects, path=path, torn_lines=lines.torn_lines)


def metrics_of(lines: Iterable[JsonObject], *, path: Path, torn_lines: int = 0) -> RunMetrics:
    """The metrics in the lines of `path`, which an error names. Raises as `read_metrics`."""
    objects = surviving(lines, path=path)
    evaluated: dict[str, list[JsonObject]] = {"": []}
    for line in objects:
        if line.get("kind") == "eval":
            evaluated.setdefault(str(line.get("set", "")), []).append(line)
    sets = {name: _latest(path, ones, kind="eval", key="version") for name, ones in evaluated.items()}
    return RunMetrics(
        steps=_latest(path, objects, kind="step", key="step"),
        evaluations=sets.pop(""),
        sets=sets,
        torn_lines=torn_lines,
    )


def surviving(objects: Iterable[JsonObject], *, path: Path = Path(METRICS_FILE)) -> list[JsonObject]:
    """The lines of steps and evaluations of `path` that no later line rolls back. Raises ValueError as `read_metrics`."""
    try:
        return _not_rolled_back(objects)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: a rollback must have a number `to` and a text `lineage`, other lines numbers: {error!r}"
        ) from error


def _not_rolled_back(objects: Iterable[JsonObject]) -> list[JsonObject]:
    kept: list[JsonObject] = []
    rollbacks: list[Rollback] = []
    for line in objects:
        if line.get("kind") != ROLLBACK:
            kept.append(line)
            continue
        rollback = Rollback(to=operator.index(line["to"]), lineage=line["lineage"] + "")
        rollbacks.append(rollback)
        kept = [line for line in kept if not (line.get("kind") == "step" and line.get("step", -1) >= rollback.to)]
    return [line for line in kept if not is_given_up(line.get("lineage", FIRST), line.get("version", 0), rollbacks)]


def past(run_dir: Path) -> list[JsonObject]:
    """The surviving lines with no more of a step than its place and time, which is what a coordinator starts from."""
    told = (line for line in json_lines(run_dir / METRICS_FILE) if line is not None)
    path = run_dir / METRICS_FILE
    return surviving(
        ({name: line[name] for name in _PLACE if name in line} if "step" in line else line for line in told), path=path
    )


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """[len(rows)] float64: one metric over all rows; NaN where a row lacks the metric."""
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _latest(path: Path, objects: Sequence[JsonObject], *, kind: str, key: str) -> tuple[Row, ...]:
    rows: dict[float, Row] = {}
    for record in objects:
        if record.get("kind") != kind:
            continue
        try:
            row = {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        except OverflowError as error:
            raise ValueError(f"{path}: a number of a line of kind {kind!r} is beyond every float: {error}") from error
        if key not in row:
            raise ValueError(f"{path}: a line of kind {kind!r} must have a number {key!r}, got {record.get(key)!r}")
        rows[row[key]] = row
    return tuple(rows[place] for place in sorted(rows))
