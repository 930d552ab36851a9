"""Options of ECharts for the overview: numbers in, plain dictionaries out.

One set of colours serves both themes: of Okabe and Ito's, which people with any colour vision tell apart, those that have a
contrast of 3:1 with white and with the dark page. What colour says, a dash says too. A key with a colon is evaluated in the
browser, whose `scaled` (page.js) makes sizes follow the texts of the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.report.metrics import Row, RunMetrics, column
from sluice.ui.panels import ACCURACY, Panel

COLOURS = ("#1c82c9", "#d55e00", "#009e73", "#c46a9b", "#8a7f2c", "#7f8794")
DASHES = ("solid", "dashed", "dotted", [9, 3, 2, 3])
BOUND = "#8b93a1"
QUIET = "#868e9c"
GRID = "rgba(134,142,156,0.22)"
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif'

MOST_POINTS = 600
"""Of one line; a longer line keeps the first and last point, and every n-th or so between."""

_LOG_FLOOR = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How the reader wants the charts: part of the address."""

    smoothing: float = 0.6
    """Weight of the past in an exponential mean, in [0, 1)."""
    log: bool = False
    axis: str = "step"
    """`step`, or `time` in minutes since the first step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One run on a chart."""

    run: str
    metrics: RunMetrics
    bound: int | None = None
    """coordinator.max_staleness."""


def panel_options(panel: Panel, runs: Sequence[Series], look: Look) -> dict[str, Any]:
    """The chart of one panel over one or several runs."""
    series: list[dict[str, Any]] = []
    for place, run in enumerate(runs):
        at = _positions(run.metrics.steps, look)
        for number, line in enumerate(panel.lines):
            values = column(run.metrics.steps, line.metric) * panel.scale
            name = line.label if len(runs) == 1 else f"{run.run}: {line.label}"
            colour, dash = _marks(place, number, many=len(runs) > 1)
            series += _lines(name, at, values, colour=colour, dash=dash, look=look, log=panel.log or look.log)
    if panel.key == "age":
        for place, run in enumerate(runs):
            if run.bound is not None and series:
                series.append(_bound(run, place, many=len(runs) > 1))
    return _options(panel, series, look, empty=not series)


def accuracy_options(runs: Sequence[Series], look: Look) -> dict[str, Any]:
    """Evaluations over the steps trained, with 95 % intervals; a line of its own for each set."""
    series: list[dict[str, Any]] = []
    for place, run in enumerate(runs):
        sets = {"": run.metrics.evaluations, **run.metrics.sets}
        lines = [
            (name, rows, line)
            for name, rows in sets.items()
            for line in ACCURACY.lines
            if name == "" or line is ACCURACY.lines[0]
        ]
        for number, (name, rows, line) in enumerate(lines):
            label = " ".join(filter(None, (f"{run.run}:" if len(runs) > 1 else "", name, line.label)))
            colour, dash = _marks(place, number, many=len(runs) > 1)
            series += _evaluated(label, rows, line.metric, colour=colour, dash=dash)
    options = _options(ACCURACY, series, Look(axis="step"), empty=not series)
    options["yAxis"] |= {"min": 0, "max": 100, "interval": 25}
    return options


def _evaluated(label: str, rows: Sequence[Row], metric: str, *, colour: str, dash: object) -> list[dict[str, Any]]:
    at, values = column(rows, "version"), column(rows, metric) * 100
    there = np.isfinite(values)
    if not there.any():
        return []
    line = _line(label, at[there], values[there], colour=colour, dash=dash) | {"showSymbol": True, "symbolSize": 6}
    low, high = column(rows, f"{metric}_low") * 100, column(rows, f"{metric}_high") * 100
    known = there & np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return [line]
    under = _line(f"{label} low", at[known], low[known], colour=colour, dash="solid")
    band = _line(f"{label} band", at[known], (high - low)[known], colour=colour, dash="solid")
    hidden = {"lineStyle": {"opacity": 0}, "stack": label, "silent": True, "tooltip": {"show": False}, "symbol": "none"}
    return [line, under | hidden, band | hidden | {"areaStyle": {"color": colour, "opacity": 0.16}}]


def _positions(rows: Sequence[Row], look: Look) -> np.ndarray:
    """[N] float64: the number of steps trained, or minutes."""
    if look.axis != "time":
        return column(rows, "step") + 1
    times = column(rows, "time_s")
    return (times - (times[0] if len(times) else 0.0)) / 60


def _marks(place: int, number: int, *, many: bool) -> tuple[str, object]:
    """Colour and dash: of several runs the colour says which, of one run which metric."""
    colour = COLOURS[(place if many else number) % len(COLOURS)]
    return colour, DASHES[number % len(DASHES)]


def _lines(
    name: str, at: np.ndarray, values: np.ndarray, *, colour: str, dash: object, look: Look, log: bool
) -> list[dict[str, Any]]:
    there = np.isfinite(values) & np.isfinite(at) & ((values > _LOG_FLOOR) | (not log))
    if not there.any():
        return []
    at, values = at[there], values[there]
    smooth = smoothed(values, look.smoothing)
    main = _line(name, at, smooth, colour=colour, dash=dash)
    if look.smoothing <= 0 or len(values) < 3:
        return [main]
    raw = _line(f"{name} (raw)", at, values, colour=colour, dash="solid")
    raw["lineStyle"] |= {"opacity": 0.28, "width": 1}
    return [raw | {"silent": True, "tooltip": {"show": False}}, main]


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """[N] -> [N] float64: exponential mean, corrected for its start."""
    if weight <= 0:
        return values
    out, mean, total = np.empty(len(values)), 0.0, 0.0
    for place, value in enumerate(values):
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        out[place] = mean / total
    return out


def _line(name: str, at: np.ndarray, values: np.ndarray, *, colour: str, dash: object) -> dict[str, Any]:
    keep = _kept(len(at))
    return {
        "type": "line",
        "name": name,
        "data": [[_round(x), _round(y)] for x, y in zip(at[keep], values[keep], strict=True)],
        "showSymbol": len(at) < 2,
        "symbolSize": 5,
        "symbol": "circle",
        "itemStyle": {"color": colour},
        "lineStyle": {"color": colour, "width": 2, "type": dash},
        "emphasis": {"disabled": True},
    }


def _kept(count: int) -> np.ndarray:
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, MOST_POINTS).round().astype(int))


def _round(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0


def _bound(run: Series, place: int, *, many: bool) -> dict[str, Any]:
    name = f"{run.run}: bound" if many else "bound"
    style = {"color": COLOURS[place % len(COLOURS)] if many else BOUND, "type": [2, 4], "width": 2}
    mark = {
        "yAxis": run.bound,
        "label": {
            "formatter": f"bound {run.bound}",
            "color": QUIET,
            ":fontSize": "scaled(11)",
            "position": "insideEndTop",
        },
    }
    return {
        "type": "line",
        "name": name,
        "data": [],
        "markLine": {"silent": True, "symbol": "none", "lineStyle": style, "data": [mark], "animation": False},
        "_bound": run.bound,
    }


def _options(panel: Panel, series: list[dict[str, Any]], look: Look, *, empty: bool) -> dict[str, Any]:
    log = panel.log or (look.log and panel is not ACCURACY)
    bound = max((one.pop("_bound", 0) or 0 for one in series), default=0)
    names = [one["name"] for one in series if not _is_extra(one)]
    text = {"color": QUIET, ":fontSize": "scaled(11)", "fontFamily": FONT}
    return {
        "animation": False,
        "textStyle": {"fontFamily": FONT},
        "grid": {"left": 8, ":right": "scaled(16)", ":top": "scaled(60)", "bottom": 8, "containLabel": True},
        "legend": {
            "type": "scroll",
            "data": names,
            "left": 0,
            ":top": "scaled(28)",
            ":itemWidth": "scaled(26)",
            "itemStyle": {"opacity": 0},
            ":itemHeight": "scaled(8)",
            "textStyle": text | {":lineHeight": "scaled(16)"},
            "pageTextStyle": text,
            "pageIconColor": QUIET,
            "pageIconInactiveColor": GRID,
            ":pageIconSize": "scaled(11)",
            "inactiveColor": "rgba(134,142,156,.45)",
        },
        "tooltip": {"trigger": "axis", "className": "chart-tip", "confine": True, "axisPointer": {"type": "line"}},
        "xAxis": {
            "type": "value",
            "min": "dataMin",
            "max": "dataMax",
            "minInterval": 1 if look.axis != "time" else 0,
            "axisLabel": text | {"hideOverlap": True},
            "axisLine": {"lineStyle": {"color": GRID}},
            "splitLine": {"show": False},
            "name": "",
        },
        "yAxis": {
            "type": "log" if log else "value",
            "scale": not panel.from_zero,
            "max": panel.most if not bound or log else max(bound + 0.35, 1.35),
            "interval": panel.most / 4 if panel.most and not log else None,
            "axisLabel": text
            | ({":formatter": "(value) => value.toExponential(0)"} if log else {})
            | ({"showMaxLabel": False} if bound else {}),
            "axisLine": {"show": False},
            "axisTick": {"show": False},
            "splitLine": {"lineStyle": {"color": GRID}},
            "splitNumber": 4,
        },
        "dataZoom": [{"type": "inside", "zoomOnMouseWheel": "ctrl", "moveOnMouseWheel": False, "filterMode": "none"}],
        "toolbox": {
            "right": 0,
            "top": 0,
            ":itemSize": "scaled(13)",
            "feature": {
                "dataZoom": {"yAxisIndex": "none", "title": {"zoom": "zoom into a part", "back": "back"}},
                "restore": {"title": "whole run"},
            },
            "iconStyle": {"borderColor": QUIET},
        },
        "series": series,
        "graphic": _nothing(panel) if empty else [],
    }


def histogram_options(counts: Sequence[int]) -> dict[str, Any]:
    """Bars over equal parts of [0 %, 100 %]."""
    width = 100 // len(counts)
    names = [f"{at * width}–{(at + 1) * width}" for at in range(len(counts))]
    text = {"color": QUIET, ":fontSize": "scaled(11)", "fontFamily": FONT}
    axis = {"axisLabel": text, "axisLine": {"lineStyle": {"color": GRID}}, "axisTick": {"show": False}}
    return {
        "animation": False,
        "grid": {"left": 8, "right": 14, ":top": "scaled(58)", ":bottom": "scaled(24)", "containLabel": True},
        "tooltip": {"trigger": "axis", "className": "chart-tip", "confine": True},
        "xAxis": axis
        | {"type": "category", "data": names, "name": "right, %", "nameLocation": "middle", ":nameGap": "scaled(28)"}
        | {"nameTextStyle": text},
        "yAxis": {"type": "value", "minInterval": 1, "axisLabel": text, "splitLine": {"lineStyle": {"color": GRID}}},
        "series": [{"type": "bar", "name": "prompts", "data": list(counts), "itemStyle": {"color": COLOURS[0]}}],
    }


def _is_extra(series: Mapping[str, Any]) -> bool:
    return series.get("tooltip") == {"show": False} or series["name"].endswith("bound")


def _nothing(panel: Panel) -> list[dict[str, Any]]:
    what = "no evaluation yet" if panel is ACCURACY else "not measured in this run yet"
    return [
        {
            "type": "text",
            "left": "center",
            "top": "middle",
            "style": {"text": what, "fill": QUIET, ":fontSize": "scaled(12)"},
        }
    ]
