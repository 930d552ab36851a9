"""The figures at the head of the overview, and the ledger by terms: of a live coordinator, else of the files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT, duration, number, quantity
from sluice.report.metrics import Row, RunMetrics
from sluice.ui.runs import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One figure with its unit, and what stands below it."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


def overview_figures(run: Run) -> list[Figure]:
    """The figures of the overview: always the same ones in the same order, so that nothing jumps while a run is live."""
    metrics = run.metrics()
    last: Row = metrics.steps[-1] if metrics.steps else {}
    return [
        _accuracy(metrics, "eval/avg_at_n", "Held-out accuracy, avg@n"),
        _accuracy(metrics, "eval/greedy", "Held-out accuracy, greedy"),
        _steps(run, metrics),
        _of(last, "reward/trained_mean", "Reward after the filter", digits=3, note=_before(last)),
        _of(last, "sampling/acceptance", "Groups kept", "%", scale=100, note="in the newest step"),
        _age(run, last),
        _of(last, "loss/entropy_nats", "Entropy", "nats", digits=3, note="newest step"),
        _of(last, "response/length_mean_tokens", "Response length", "tokens", note="mean of the newest step"),
        _rate(last, "rollout/generated_tokens_per_s", "Generated"),
        _rate(last, "learner/tokens_per_s", "Trained"),
        _of(last, "learner/mfu", "MFU", "%", scale=100, note="of the learner's peak FLOP/s"),
        _of(last, "learner/peak_memory_bytes", "Memory of a rank", "GB", scale=1e-9, digits=2, note="peak in training"),
    ]


def ledger_of(run: Run) -> Mapping[str, int]:
    """Groups by term, those with none left out; empty where nothing is known yet."""
    if run.live is not None and run.live.status is not None:
        ledger = run.live.status.ledger
        names = [
            name for name in ledger.DESCRIPTOR.fields_by_name if name not in ("admitted", "closed", "failed", "tokens")
        ]
        terms = {name: getattr(ledger, name) for name in names if not name.endswith("_tokens")}
        terms |= {f"failed:{reason}": count for reason, count in ledger.failed.items()}
        return {term: count for term, count in terms.items() if count}
    if run.files is None:
        return {}
    try:
        return run.files.ledger.terms()
    except SluiceError:
        return {}


def _accuracy(metrics: RunMetrics, name: str, label: str) -> Figure:
    rows = metrics.evaluations or next(iter(metrics.sets.values()), ())
    known = [row for row in rows if math.isfinite(row.get(name, math.nan))]
    if not known:
        return Figure(label=label, value=ABSENT, note="no evaluation yet")
    first, last = known[0], known[-1]
    low, high = last.get(f"{name}_low"), last.get(f"{name}_high")
    within = f"95 %: {100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
    if first is last:
        return Figure(label=label, value=_percent(last[name]), unit="%", note=within or "one evaluation")
    return Figure(label=label, value=f"{_percent(first[name])} → {_percent(last[name])}", unit="%", note=within)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _steps(run: Run, metrics: RunMetrics) -> Figure:
    status = run.live.status if run.live is not None else None
    if status is not None:
        return Figure(
            label="Steps",
            value=f"{status.step:,}",
            unit=f"of {status.total_steps:,}",
            note=f"in {duration(status.train_wall_s)}",
        )
    summary = run.files.summary() if run.files is not None else None
    wall = summary.get("train_wall_s") if summary else None
    count = int(metrics.steps[-1]["step"]) + 1 if metrics.steps else 0
    return Figure(
        label="Steps",
        value=f"{count:,}",
        note=f"in {duration(wall)}" if isinstance(wall, int | float) else "not ended",
    )


def _of(
    row: Row, name: str, label: str, unit: str = "", *, scale: float = 1.0, digits: int = 1, note: str = ""
) -> Figure:
    value = row.get(name, math.nan) * scale
    if not math.isfinite(value):
        return Figure(label=label, value=ABSENT, note=_absent(row))
    return Figure(label=label, value=number(value, digits), unit=unit, note=note)


def _absent(row: Row) -> str:
    return "not measured in this run" if row else "no step yet"


def _before(row: Row) -> str:
    value = row.get("reward/generated_mean", math.nan)
    return f"before it {value:.3f}" if math.isfinite(value) else ""


def _age(run: Run, row: Row) -> Figure:
    try:
        bound = f"bound {run.config().coordinator.max_staleness}"
    except SluiceError:
        bound = ""
    largest, mean = row.get("staleness/age_max_steps", math.nan), row.get("staleness/age_mean_steps", math.nan)
    if not math.isfinite(largest):
        return Figure(label="Age of the oldest token", value=ABSENT, note=bound)
    return Figure(
        label="Age of the oldest token",
        value=number(mean, 2),
        unit="steps",
        note=f"largest {number(largest)}, {bound}".rstrip(", "),
    )


def _rate(row: Row, name: str, label: str) -> Figure:
    value = row.get(name, math.nan)
    note = "newest step" if math.isfinite(value) else _absent(row)
    return Figure(label=label, value=quantity(value), unit="tokens/s" if math.isfinite(value) else "", note=note)
