"""python -m benchmarks.simulated.overlap_figure: docs/overlap.png from results/overlap_schedule.json, and the table of
docs/staleness.md on the standard output."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.report import RESULTS

PICTURE = Path(__file__).parents[2] / "docs" / "overlap.png"

_WHAT = re.compile(r"(\d+) rollouts \(simulated\), generation : training ([\d.]+) \(([\d.]+) measured\): (.*)")
_SYNC = re.compile(r"(synchronous, gen_batch_size \d B)(?:, (.*))?")
_WAY = re.compile(r"(max_staleness \d+, refill_confidence [\d.]+), (.*)")
_GENERATED = "groups generated a trained group"
_SPEED, _STEP = "times the synchronous speed", "step / max(generation, training)"
_COLUMNS = (
    "rollouts",
    "generation : training",
    "schedule",
    "step / the longer of the two",
    "times the synchronous speed",
    "kept groups trained",
    "groups generated a trained one",
    "mean age",
)
_STYLES = {"1": "-", "2": "--", "4": ":"}
_COLOURS = {"1": "#16a34a", "0.9": "#ea7317", "0.5": "#2563eb"}


@dataclass(kw_only=True, slots=True)
class Case:
    """One fleet at one ratio; figures by schedule and name."""

    rollouts: int
    asked: float
    measured: float
    sync: str = ""
    sync_figures: dict[str, float] = field(default_factory=dict)
    ways: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))


def cases(rows: list[Mapping[str, str | float]]) -> list[Case]:
    """What the benchmark's rows say, in their order."""
    found: dict[tuple[int, float], Case] = {}
    for row in rows:
        match = _WHAT.fullmatch(str(row["what"]))
        assert match is not None, row
        rollouts, asked, measured, rest = int(match[1]), float(match[2]), float(match[3]), match[4]
        case = found.setdefault((rollouts, asked), Case(rollouts=rollouts, asked=asked, measured=measured))
        if sync := _SYNC.fullmatch(rest):
            case.sync = sync[1]
            case.sync_figures[sync[2] or "step"] = float(row["value"])
        elif way := _WAY.fullmatch(rest):
            case.ways[way[1]][way[2]] = float(row["value"])
    return [*found.values()]


def table(found: list[Case]) -> Iterator[str]:
    """The Markdown table, a line each."""
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "|---" * len(_COLUMNS) + "|"
    for case in found:
        head, sync = f"| {case.rollouts} | {case.measured:.2f} ", case.sync_figures
        trained, generated = sync["qualifying groups trained"], sync[_GENERATED]
        longer = max(case.measured, 1.0)
        step = f"{(1.0 + case.measured) / longer:.2f}"
        yield f"{head}| {case.sync} | {step} | 1 | {trained:.2f} | {generated:.2f} | 0 |"
        for way, figures in case.ways.items():
            cells = [f"{figures[_STEP]:.2f}", f"{figures[_SPEED]:.2f}", f"{figures['qualifying groups trained']:.2f}"]
            cells += [f"{figures[_GENERATED]:.2f}", f"{figures['mean age']:.2f}"]
            yield f"{head}| {way} | {' | '.join(cells)} |"


def draw(found: list[Case], path: Path) -> None:
    """Writes the picture: speed against the ratio, and what each schedule generates at ratio 1."""
    figure = Figure(figsize=(11.5, 4.6), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.08))
    speed, price = figure.subplots(1, 2)
    curve = sorted((case for case in found if case.rollouts == 16), key=lambda case: case.measured)
    _speeds(speed, curve)
    _generated(price, next(case for case in curve if case.asked == 1.0))
    for axes in (speed, price):
        axes.grid(visible=True, color="#e5e7eb", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Half of the groups kept, 16 rollouts", x=0.012, ha="left", fontsize=12, weight="bold")
    figure.savefig(path, format="png")


def _speeds(axes: Axes, curve: list[Case]) -> None:
    ratios = [case.measured for case in curve]
    for way in curve[0].ways:
        speeds = [case.ways[way][_SPEED] for case in curve]
        axes.plot(ratios, speeds, marker="o", ms=3.5, lw=1.8, label=way, color=_colour(way), ls=_style(way))
    hidden = [(1.0 + ratio) / max(1.0, ratio) for ratio in ratios]
    axes.plot(ratios, hidden, color="#111827", lw=0.9, label="step = the longer of the two")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0.9, 2.8)
    axes.set_xlabel("generation : training of the synchronous run", fontsize=10)
    axes.set_ylabel("times the tuned synchronous speed", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, frameon=False)


def _generated(axes: Axes, level: Case) -> None:
    figures = {way: values[_GENERATED] for way, values in reversed(level.ways.items())}
    figures |= {level.sync: level.sync_figures[_GENERATED]}
    bars = axes.barh(
        [*figures], [*figures.values()], color=["#64748b" if way == level.sync else _colour(way) for way in figures]
    )
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xlabel("groups generated a trained group, generation : training 1", fontsize=10)
    axes.tick_params(axis="y", labelsize=9)


def _colour(way: str) -> str:
    return _COLOURS[way.rpartition(" ")[2]]


def _style(way: str) -> str:
    return _STYLES[way.split(",")[0].rpartition(" ")[2]]


def main() -> None:
    """Draws and prints."""
    found = cases(json.loads((RESULTS / "overlap_schedule.json").read_text())["rows"])
    draw(found, PICTURE)
    print("\n".join(table([case for case in found if case.asked == 1.0])))


if __name__ == "__main__":
    main()
