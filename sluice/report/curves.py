"""Draws RUN/curves.png: how the run learned, and whether the run was healthy.

Nine panels over the steps trained: accuracy, rewards, dynamic sampling, and how far generation and training drifted
apart; a run that has figures of its devices has a fourth row for them. Step k stands at k + 1, the number of steps trained
after step k; an evaluation of version v stands at v, its 95 % interval as a band. Thin lines are the values, thick lines a
centred moving mean. docs/metrics.md has the healthy ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from sluice.report.metrics import Row, RunMetrics, column, read_metrics
from sluice.run_dir.full_disk import is_full, located

CURVES_FILE = "curves.png"

CURVES_BYTES = 500_000
"""About the size of the picture. Measured: 320 kB and 460 kB for the demos."""

BLUE, ORANGE, GREEN, RED, GREY, DARK = "#2563eb", "#ea7317", "#16a34a", "#dc2626", "#9ca3af", "#334155"

_SET_COLOURS = (GREEN, RED, "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#a16207", "#475569")

Scale = Literal["from_zero", "free", "log"]

_MEASURES = (("eval/avg_at_n", "avg@n"), ("eval/greedy", "greedy"), ("eval/tool_use", "tool use"))
_AGE_TITLE = "Age of the oldest token"

_SMOOTHED_SHARE = 20
"""The moving mean spans a twentieth of the run: enough to calm the noise, too little to hide a jump."""

_HEADROOM = 1.2
"""Room for the legend above the largest value of a panel that starts at zero."""

_LOG_FLOOR = 1e-9
"""A smaller divergence is float noise, which would squeeze everything else in the panel into one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One panel of the sheet; `lines` are (metric name, label, colour)."""

    title: str
    unit: str
    lines: tuple[tuple[str, str, str], ...]
    scale: Scale = "from_zero"


_STEP_PANELS = (
    _Panel(
        title="Reward",
        unit="shaped reward",
        scale="free",
        lines=(
            ("reward/generated_mean", "generated (before filtering)", BLUE),
            ("reward/trained_mean", "trained (after filtering)", ORANGE),
        ),
    ),
    _Panel(
        title="Dynamic sampling",
        unit="%",
        lines=(
            ("sampling/acceptance", "groups kept", GREEN),
            ("sampling/all_right_fraction", "dropped: all right", BLUE),
            ("sampling/all_wrong_fraction", "dropped: all wrong", RED),
        ),
    ),
    _Panel(title="Entropy", unit="nats", lines=(("loss/entropy_nats", "policy at trained tokens", BLUE),)),
    _Panel(
        title="Response length",
        unit="tokens",
        lines=(
            ("response/length_mean_tokens", "mean", BLUE),
            ("response/length_max_tokens", "longest", GREY),
        ),
    ),
    _Panel(
        title="Clipped tokens",
        unit="%",
        lines=(
            ("loss/clip_fraction_high", "high (1 + ε high)", BLUE),
            ("loss/clip_fraction_low", "low (1 − ε low)", ORANGE),
            ("loss/clip_fraction_dual", "dual (c)", RED),
        ),
    ),
    _Panel(
        title="Mismatch, KL(rollout ‖ learner)",
        unit="nats (k3)",
        scale="log",
        lines=(
            ("mismatch/k3_age0_nats", "age 0", GREEN),
            ("mismatch/k3_age1_nats", "age 1", BLUE),
            ("mismatch/k3_age2plus_nats", "age 2 and more", RED),
            ("mismatch/k3_nats", "all", GREY),
        ),
    ),
    _Panel(
        title=_AGE_TITLE,
        unit="steps",
        lines=(
            ("staleness/age_mean_steps", "mean over groups", BLUE),
            ("staleness/age_max_steps", "largest", ORANGE),
        ),
    ),
    _Panel(
        title="Throughput",
        unit="tokens/s",
        lines=(
            ("rollout/generated_tokens_per_s", "generated", BLUE),
            ("learner/tokens_per_s", "trained, while training", ORANGE),
        ),
    ),
)

_DEVICE_PANELS = (
    _Panel(
        title="Use of the devices",
        unit="%",
        lines=(
            ("learner/mfu", "learner, of its peak FLOP/s (MFU)", BLUE),
            ("learner/hfu", "with recomputation (HFU)", GREY),
            ("rollout/kv_use", "fullest KV cache", ORANGE),
        ),
    ),
    _Panel(
        title="Memory of a learner's rank",
        unit="bytes",
        lines=(("learner/peak_memory_bytes", "peak in training", BLUE),),
    ),
    _Panel(
        title="Preemptions",
        unit="samples a step",
        lines=(("rollout/preemptions", "put back: KV cache full", RED),),
    ),
)
"""Drawn where a run has any of their figures; a run made before they were measured has none."""


def draw_curves(run_dir: Path) -> Path:
    """Writes RUN/curves.png and returns its path.

    Raises OSError, NoRoom for a full disk; a former picture stays.
    """
    return save_curves(curves_of(run_dir), run_dir)


def curves_of(run_dir: Path) -> Figure:
    """The sheet of a run, from RUN/metrics.jsonl (and the bound in RUN/config.yaml)."""
    return curves(read_metrics(run_dir), title=run_dir.resolve().name, max_staleness=_max_staleness(run_dir))


def save_curves(figure: Figure, run_dir: Path) -> Path:
    """Writes the sheet to RUN/curves.png. Raises as `draw_curves`."""
    path = run_dir / CURVES_FILE
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format="png")
        partial.replace(path)
    except OSError as error:
        size_bytes = partial.stat().st_size if partial.exists() else 0
        partial.unlink(missing_ok=True)
        if not is_full(error):
            raise
        raise located(error, run_dir, max(size_bytes, CURVES_BYTES)) from error
    return path


def curves(metrics: RunMetrics, *, title: str, max_staleness: int | None) -> Figure:
    """The sheet; a panel without data says that there is no data."""
    panels = _STEP_PANELS + (_DEVICE_PANELS if _measured(metrics, _DEVICE_PANELS) else ())
    rows = (1 + len(panels)) // 3
    figure = Figure(figsize=(13.5, 9.2 * rows / 3), dpi=130, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08))
    sheet = figure.subplots(rows, 3)
    accuracy, *others = sheet.flat
    _draw_accuracy(accuracy, metrics)
    for axes, panel in zip(others, panels, strict=True):
        _draw_panel(axes, panel, metrics.steps)
        if panel.title == _AGE_TITLE and max_staleness is not None:
            _draw_bound(axes, max_staleness)
    for axes in sheet[-1]:
        axes.set_xlabel("steps trained", fontsize=9)
    headline = "   ".join((title, *_changes(metrics.evaluations)))
    figure.suptitle(headline, x=0.012, ha="left", fontsize=13, fontweight="bold")
    return figure


def _measured(metrics: RunMetrics, panels: Sequence[_Panel]) -> bool:
    names = {name for panel in panels for name, *_ in panel.lines}
    return any(not names.isdisjoint(row) for row in metrics.steps)


def _draw_accuracy(axes: Axes, metrics: RunMetrics) -> None:
    evaluations, (average, _) = metrics.evaluations, _MEASURES[0]
    versions = column(evaluations, "version")
    for (name, label), colour in zip(_MEASURES, (BLUE, ORANGE, DARK), strict=True):
        values = column(evaluations, name)
        there = np.isfinite(values)
        if name == "eval/tool_use" and not values[there].any():
            continue  # nothing to call, mostly
        if there.any():
            axes.plot(versions[there], values[there], color=colour, marker="o", markersize=3.5, lw=1.8, label=label)
            before = values[there][0]
            axes.axhline(before, color=colour, lw=1, ls=(0, (4, 3)), alpha=0.6, label=f"{label} before: {before:.0%}")
    _draw_interval(axes, evaluations, average, colour=BLUE)
    for place, (name, rows) in enumerate(metrics.sets.items()):
        colour = _SET_COLOURS[place % len(_SET_COLOURS)]
        axes.plot(
            column(rows, "version"), column(rows, average), color=colour, marker="s", markersize=3, lw=1.4, label=name
        )
        _draw_interval(axes, rows, average, colour=colour)
    _finish(axes, title="Held-out accuracy", unit="%", scale="from_zero")
    axes.set_ylim(0, 1.02)


def _draw_interval(axes: Axes, rows: Sequence[Row], name: str, *, colour: str) -> None:
    low, high = column(rows, f"{name}_low"), column(rows, f"{name}_high")
    if (there := np.isfinite(low) & np.isfinite(high)).any():
        axes.fill_between(column(rows, "version")[there], low[there], high[there], color=colour, alpha=0.15, lw=0)


def _draw_panel(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    trained = column(rows, "step") + 1
    for name, label, colour in panel.lines:
        values = column(rows, name)
        there = np.isfinite(values) & ((values >= _LOG_FLOOR) | (panel.scale != "log"))
        if not there.any():
            continue
        axes.plot(trained[there], values[there], color=colour, lw=0.8, alpha=0.35)
        axes.plot(trained[there], _smooth(values[there]), color=colour, lw=1.8, label=label)
    _finish(axes, title=panel.title, unit=panel.unit, scale=panel.scale)


def _draw_bound(axes: Axes, bound: int) -> None:
    axes.axhline(bound, color=RED, lw=1.2, ls=(0, (4, 3)), label=f"bound: {bound}")
    axes.set_ylim(0, max(1, bound) * 1.35)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8, frameon=False)


def _finish(axes: Axes, *, title: str, unit: str, scale: Scale) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")
    axes.set_ylabel(unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#e5e7eb", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.has_data():
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color=GREY, transform=axes.transAxes)
        return
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if unit == "bytes":
        axes.yaxis.set_major_formatter(EngFormatter(places=1))
    if unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    if scale == "log":
        axes.set_yscale("log")
    if scale == "from_zero":
        axes.set_ylim(0, axes.dataLim.ymax * _HEADROOM if axes.dataLim.ymax > 0 else 1)
    axes.legend(loc="best", fontsize=8, frameon=False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """[N] -> [N] float64: centred moving mean over a twentieth of the values, shorter at both ends."""
    half = max(1, len(values) // _SMOOTHED_SHARE) // 2
    sums = np.concatenate(([0.0], np.cumsum(values)))
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _changes(evaluations: Sequence[Row]) -> list[str]:
    changes = []
    for name, label in _MEASURES:
        values = column(evaluations, name)
        values = values[np.isfinite(values)]
        if len(values) > 1 and (name != "eval/tool_use" or values.any()):
            changes.append(f"{label} {values[0]:.0%} → {values[-1]:.0%}")
    return changes


def _max_staleness(run_dir: Path) -> int | None:
    """The bound in RUN/config.yaml, a resolved configuration with every key; None before the file is written."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return None
    return yaml.safe_load(path.read_text(encoding="utf-8"))["coordinator"]["max_staleness"]
