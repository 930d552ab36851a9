"""One line of metrics.jsonl in the form for loggers: a place on the axis of trained steps, and numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """The values at one place of the axis."""

    trained_steps: int
    """Steps trained so far: step k stands at k + 1, the evaluation of version v at v, the base model's at 0."""
    time_s: float
    """Unix time."""
    values: Mapping[str, float]
    """Finite values by catalogue name."""


def line_of(record: Mapping[str, Any]) -> Line:
    """The metrics of a `step` or `eval` line, without texts (digests, lineage) and without values that are not finite."""
    place = record["step"] + 1 if record["kind"] == "step" else record["version"]
    prefix = f"eval/set/{record['set']}/" if record.get("set") else ""  # of a named evaluation set
    values = {
        prefix + name.removeprefix("eval/") if prefix else name: float(value)
        for name, value in record.items()
        if "/" in name and isinstance(value, int | float) and math.isfinite(value)
    }
    return Line(trained_steps=place, time_s=record["time_s"], values=values)
