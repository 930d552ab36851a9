"""The curves of the race: held-out accuracy against seconds, completions and CPU-seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from benchmarks.vs_trl.crossings import COSTS, Curve, median_curve

_COLOURS = {"Sluice": "#2563eb", "TRL": "#ea7317"}
_LABELS = {
    "seconds": "seconds of training",
    "completions": "completions generated",
    "cpu_seconds": "CPU-seconds of training",
}


def draw(sides: Mapping[str, Sequence[Curve]], path: Path, *, title: str, samples: int) -> None:
    """Writes the picture; thin lines are runs, thick ones the medians of each side."""
    figure = Figure(figsize=(13.5, 4.6), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.08))
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        for side, curves in sides.items():
            for run in curves:
                axes.plot(run.costs[cost], run.avg, color=_COLOURS[side], lw=0.8, alpha=0.4)
            label = f"{side}, median of {len(curves)}"
            axes.plot(*median_curve(curves, cost), color=_COLOURS[side], lw=2.4, label=label)
        axes.set_xlabel(_LABELS[cost], fontsize=10)
        axes.set_xlim(left=0)
        axes.grid(visible=True, color="#e5e7eb", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"held-out accuracy, avg@{samples} at temperature 1, %", fontsize=10)
    panels[0].set_ylim(0.0, 1.0)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    panels[0].legend(loc="lower right", fontsize=9, frameon=False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path, format="png")
