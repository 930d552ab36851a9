"""How the run learns, and whether it is healthy: figures, what departs from the paper, the ledger, charts."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nicegui import ui

from sluice.errors import SluiceError
from sluice.ui.charts import Look, Series, accuracy_options, panel_options
from sluice.ui.figures import Figure, ledger_of, overview_figures
from sluice.ui.page import Page
from sluice.ui.panels import ACCURACY, PANELS
from sluice.ui.parts import box, chip, empty, figure, panel, said, term_look

REFRESH_S = 2.0


def look_of(page: Page) -> Look:
    """What the address says of the charts; a value that makes no sense counts as absent."""
    try:
        smoothing = min(0.99, max(0.0, float(page.query.get("smooth", ""))))
    except ValueError:
        smoothing = Look().smoothing
    axis = "time" if page.query.get("x") == "time" else "step"
    return Look(smoothing=smoothing, log=page.query.get("log") == "1", axis=axis)


async def show(page: Page) -> None:
    """The view."""
    series = await asyncio.to_thread(_series, page)
    if not any(one.metrics.steps or one.metrics.evaluations for one in series) and page.run.live is None:
        empty(
            "No step has been trained yet",
            "metrics.jsonl gets a line for every step and every evaluation; this page shows it as it comes.",
        )
        return
    figures, terms = await asyncio.to_thread(_known, page)
    tiles = _figures(figures)
    _departures(page)
    ledger = box()
    with ledger:
        _ledger(page, terms)
    draw = _Charts(page, series)

    async def refresh() -> None:
        nonlocal terms
        fresh = await asyncio.to_thread(_series, page)
        figures, now = await asyncio.to_thread(_known, page)
        for one, tile in zip(figures, tiles, strict=True):
            tile["value"].text, tile["unit"].text, tile["note"].text = one.value, one.unit, one.note
        if _sizes(fresh) != _sizes(draw.series):
            draw(fresh)
        if now != terms:
            terms = now
            ledger.clear()
            with ledger:
                _ledger(page, terms)

    ui.timer(REFRESH_S, refresh)


def _known(page: Page) -> tuple[Sequence[Figure], Mapping[str, int]]:
    """What is read of files, for a thread of its own."""
    return overview_figures(page.run), ledger_of(page.run)


def _series(page: Page) -> list[Series]:
    found = []
    for one in (page.run, *page.over):
        try:
            bound = one.config().coordinator.max_staleness
        except SluiceError:
            bound = None
        found.append(Series(run=one.name, metrics=one.metrics(), bound=bound))
    return found


def _sizes(series: Sequence[Series]) -> list[tuple[int, int, float]]:
    return [
        (
            len(one.metrics.steps),
            len(one.metrics.evaluations),
            one.metrics.steps[-1].get("time_s", 0) if one.metrics.steps else 0,
        )
        for one in series
    ]


def _figures(shown: Sequence[Figure]) -> list[dict[str, Any]]:
    with box("section", "figures").props('aria-label="figures"'):
        return [figure(one.label, one.value, one.unit, one.note) for one in shown]


def _departures(page: Page) -> None:
    """A line for each setting that departs from the paper."""
    try:
        departures = page.run.config().departures
    except SluiceError as error:
        departures = None
        with panel("Algorithm"):
            said("div", str(error), "note-line warn")
    if departures is None:
        return
    with panel("Algorithm"):
        if not departures:
            with box(classes="note-line good"):
                said("span", "Exact DAPO: every setting that the paper fixes is the paper's.")
        for line in departures:
            with box(classes="note-line warn"):
                chip("departs", "warn")
                said("span", f" {line}", "mono")


def _ledger(page: Page, terms: Mapping[str, int]) -> None:
    """Every group by what became of it."""
    total = sum(terms.values())
    with panel("What became of the groups", note=f"{total:,} admitted" if total else ""):
        if not total:
            said("div", "No group has ended yet.", "soft")
            return
        with box(classes="split").props('role=img aria-label="shares of the groups, as listed below"'):
            for term, count in terms.items():
                box().style(f"flex: {count} 0 0; background: {term_look(term)[2]}").props(
                    f'title="{term_look(term)[0]}"'
                )
        with box(classes="legend"):
            for term, count in terms.items():
                words, _, colour = term_look(term)
                with box("a", "key") as key:
                    box("span", "dot").style(f"background: {colour}")
                    said("span", f"{words} {count:,} ({100 * count / total:.1f} %)", "num")
                key._props["href"] = page.address("groups", {"term": term})


class _Charts:
    """The charts and their controls; called with new numbers, draws them again."""

    def __init__(self, page: Page, series: list[Series]) -> None:
        self.page, self.series, self.look = page, series, look_of(page)
        with box(classes="filters"):
            self._controls()
        with box(classes="charts"):
            self._accuracy = self._chart(ACCURACY.title, ACCURACY.unit, accuracy_options(series, self.look))
            self._panels = [self._chart(one.title, one.unit, panel_options(one, series, self.look)) for one in PANELS]

    def __call__(self, series: list[Series]) -> None:
        self.series = series
        self._put(self._accuracy, accuracy_options(series, self.look))
        for one, chart in zip(PANELS, self._panels, strict=True):
            self._put(chart, panel_options(one, series, self.look))

    def _controls(self) -> None:
        with box("label", "field").style("width: 11.25rem"):
            said("span", "smoothing")
            slider = ui.slider(min=0, max=0.95, step=0.05, value=self.look.smoothing).props(
                "dense aria-label=smoothing"
            )
            slider.on("change", lambda: self._change(smoothing=float(slider.value or 0)))
        for label, axis in (("over steps", "step"), ("over minutes", "time")):
            self._button(label, lambda axis=axis: self._change(axis=axis), self.look.axis == axis)
        self._button("log axes", lambda: self._change(log=not self.look.log), self.look.log)
        said(
            "span",
            "A chart zooms by its first sign and a drag, or by ctrl + wheel; the values stand at the pointer.",
            "soft small",
        )

    def _button(self, label: str, do: Any, on: bool) -> None:
        button = said("button", label, "quiet-button").props(f"type=button aria-pressed={'true' if on else 'false'}")
        button.on("click", do)

    def _change(self, **changed: Any) -> None:
        look = replace(self.look, **changed)
        query = {"smooth": f"{look.smoothing:g}"} if look.smoothing != Look().smoothing else {}
        query |= ({"x": "time"} if look.axis == "time" else {}) | ({"log": "1"} if look.log else {})
        if (look.log, look.axis) != (self.look.log, self.look.axis):
            ui.navigate.to(self.page.address("overview", query))  # axes of another kind
            return
        self.look = look
        self.page.keep(query)
        self(self.series)

    def _chart(self, title: str, unit: str, options: dict[str, Any]) -> ui.echart:
        with box("section", "panel chart-box"):
            with box(classes="panel-head"):
                said("h2", title)
                said("span", unit, "soft small")
            return ui.echart(options, renderer="canvas").props(f'role=img aria-label="{title}, {unit}"')

    @staticmethod
    def _put(chart: ui.echart, options: dict[str, Any]) -> None:
        chart.options.clear()
        chart.options.update(options)
        chart.update()
