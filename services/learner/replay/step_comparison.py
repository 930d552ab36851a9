"""A replayed step beside the recorded one, as a table and a verdict. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from services.learner.replay.recorded_steps import RecordedStep

LOSS = "loss/policy"

TOLERANCE = 1e-6
"""Relative tolerance of the loss. On the CPU of the run nothing differs at all; another CPU rounds differently."""

_ROOMS = ("learner/", "loss/", "mismatch/")
_TIMED = ("_s", "_ms")
"""Endings of the names of times and rates, which no replay repeats."""

_OF_THE_MACHINE = frozenset({"learner/mfu", "learner/hfu", "learner/peak_memory_bytes"})
"""Figures that depend on the machine and on what else the process holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """Rank 0's figures of the replayed step."""

    metrics: dict[str, float]
    weights_digest: str
    ranks: int
    device: str
    """cpu or cuda."""
    context: int = 1
    """Ranks of a context group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The outcome of a comparison."""

    table: list[str]
    differs: list[str]
    """The deciding figures that differ; empty when the step was reproduced."""
    notes: list[str]


def compare(recorded: RecordedStep, replayed: Replayed, *, run_ranks: int, run_context: int = 1) -> Comparison:
    """The loss decides; so does the digest of the weights on a CPU with as many ranks, and groups of them, as the run had."""
    ours, theirs = replayed.metrics, recorded.metrics
    rows = [("metric", "recorded", "replayed", "difference")]
    for name in _names(recorded, replayed):
        before, after = theirs.get(name), ours.get(name)
        rows.append((name, _figure(before), _figure(after), _difference(before, after)))
    same_weights = replayed.weights_digest == recorded.weights_digest
    digests = (recorded.weights_digest[:12], replayed.weights_digest[:12])
    rows.append(("weights", *digests, "0" if same_weights else "other bytes"))
    notes = list(_notes(replayed, run_ranks=run_ranks, run_context=run_context))
    differs = [] if _close(theirs.get(LOSS), ours.get(LOSS)) else [f"{LOSS} by more than {TOLERANCE:g} of it"]
    if not same_weights and not notes:
        differs.append("the weights")
    return Comparison(table=_aligned(rows), differs=differs, notes=notes)


def _names(recorded: RecordedStep, replayed: Replayed) -> list[str]:
    names = {name for name in recorded.metrics if name.startswith(_ROOMS)} | replayed.metrics.keys()
    return sorted(name for name in names if not name.endswith(_TIMED) and name not in _OF_THE_MACHINE)


def _notes(replayed: Replayed, *, run_ranks: int, run_context: int) -> Iterator[str]:
    """Why different weights do not count as a difference."""
    if replayed.device != "cpu":
        yield f"weights are not compared on {replayed.device}: its arithmetic does not repeat itself to the bit"
    if replayed.ranks != run_ranks:
        yield f"weights are not compared: sums over {replayed.ranks} ranks round otherwise than over the run's {run_ranks}"
    elif replayed.context != run_context:
        yield (
            f"weights are not compared: sums of {replayed.context} ranks a micro-batch round otherwise than of the run's "
            f"{run_context}"
        )


def _close(before: float | None, after: float | None) -> bool:
    """Whether two values agree; two absent values (nothing was trained) agree."""
    if before is None or after is None:
        return before is after
    return math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=0.0)


def _difference(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return "–"
    if before == after:
        return "0"
    return f"{abs(after - before) / max(abs(before), abs(after)):.1e}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.9g}"


def _aligned(rows: list[tuple[str, str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
