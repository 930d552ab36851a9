"""One line of metrics.jsonl as loggers take it: a place on the axis of trained steps, and numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What is drawn at one place."""

    trained_steps: int
    """Steps trained by then: step k stands at k + 1, the evaluation of version v at v, the base model's at 0."""
    time_s: float
    """Unix time."""
    values: Mapping[str, float]
    """By catalogue name, all finite."""


def line_of(record: Mapping[str, Any]) -> Line:
    """What a `step` or `eval` line says; what is no metric (digests, lineage) is left out, and what is not finite."""
    place = record["step"] + 1 if record["kind"] == "step" else record["version"]
    values = {
        name: float(value)
        for name, value in record.items()
        if "/" in name and isinstance(value, int | float) and math.isfinite(value)
    }
    return Line(trained_steps=place, time_s=record["time_s"], values=values)
