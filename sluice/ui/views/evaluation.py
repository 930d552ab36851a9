"""Evaluations: every set over the versions, and prompt by prompt what was learned and what was lost between two of them."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT
from sluice.report.metrics import Row, RunMetrics
from sluice.ui.charts import Look, Series, accuracy_options
from sluice.ui.evaluations import CHANGED, Changes, Evaluations, Version
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, empty, fill, paged_table, panel, plain_table, said
from sluice.ui.shown_text import short

REFRESH_S = 5.0
KINDS = {"changed": "changed", "learned": "learned", "lost": "lost", "all": "all"}

_COLUMNS = (("prompt", "prompt", "left"), ("data_source", "source", "left"), ("before", "before, %", "right"))
_COLUMNS += (
    ("after", "after, %", "right"),
    ("change", "change, points", "right"),
    ("answer", "most frequent answer after", "left"),
)


async def show(page: Page) -> None:
    """The view; drawn again when there is an evaluation more."""
    whole = box(classes="stack")
    problem = said("div", "", "soft small")

    async def draw(metrics: RunMetrics) -> None:
        whole.clear()
        with whole:
            await _draw(page, metrics)

    shown = await asyncio.to_thread(page.run.metrics)
    await draw(shown)

    async def refresh() -> None:
        nonlocal shown
        try:
            now = await asyncio.to_thread(page.run.metrics)
        except SluiceError as error:
            problem.text = str(error)
            return
        if _sizes(now) != _sizes(shown):
            shown = now
            await draw(now)

    if page.run.live is not None:
        ui.timer(REFRESH_S, refresh)


def _sizes(metrics: RunMetrics) -> list[int]:
    return [len(metrics.evaluations), *map(len, metrics.sets.values())]


async def _draw(page: Page, metrics: RunMetrics) -> None:
    if not any(_sizes(metrics)):
        empty(
            "No evaluation yet",
            "A recipe says when there is one by eval.every_steps and data.val_files; `sluice evaluate` makes one now.",
        )
        return
    series = [Series(run=one.name, metrics=one.metrics()) for one in (page.run, *page.over)]
    with box("section", "panel chart-box tall"):
        with box(classes="panel-head"):
            said("h2", "Held-out accuracy")
            said("span", "%", "soft small")
        ui.echart(accuracy_options(series, Look())).props('role=img aria-label="accuracy over steps"')
    with panel("Every evaluation", note="the bands above are the 95 % intervals"):
        _table(metrics)
    if page.run.files is not None:
        with panel(
            "What was learned, what was lost",
            note=f"a prompt counts where its accuracy changed by {100 * CHANGED:.0f} points or more",
        ):
            content = box().style("min-height: 200px")
        await ui.context.client.connected(timeout=60)
        with content:
            await _changes(page, page.run.files.evaluations)


def _table(metrics: RunMetrics) -> None:
    rows = []
    for name, ones in {"": metrics.evaluations, **metrics.sets}.items():
        rows += [_evaluation(name, one) for one in ones]
    head = (
        "set",
        "version",
        "avg@n, %",
        "95 % interval",
        "pass@n, %",
        "maj@n, %",
        "greedy, %",
        "n",
        "prompts",
        "tokens a sample",
    )
    plain_table(head, rows, right=range(1, 10), is_wide=True)


def _evaluation(name: str, row: Row) -> tuple[str, ...]:
    def percent(key: str) -> str:
        return f"{100 * row[key]:.1f}" if key in row and row[key] == row[key] else ABSENT

    low, high = percent("eval/avg_at_n_low"), percent("eval/avg_at_n_high")
    within = f"{low} to {high}" if ABSENT not in (low, high) else ABSENT
    return (
        name or "default",
        f"{row['version']:.0f}",
        percent("eval/avg_at_n"),
        within,
        percent("eval/pass_at_n"),
        percent("eval/maj_at_n"),
        percent("eval/greedy"),
        f"{row.get('n', 0):.0f}",
        f"{row.get('prompts', 0):.0f}",
        f"{row.get('mean_response_tokens', 0):.1f}",
    )


async def _changes(page: Page, evaluations: Evaluations) -> None:
    """Two versions to choose, and the prompts between them."""
    try:
        versions = await asyncio.to_thread(evaluations.versions)
    except SluiceError as error:
        said("div", str(error), "soft")
        return
    sets = list(dict.fromkeys(one.set for one in versions))
    chosen = page.query.get("set", sets[0])
    ones = [one for one in versions if one.set == (chosen if chosen in sets else sets[0])]
    if len(ones) < 2:
        said("div", "There is one evaluated version; with a second one this shows what changed.", "soft")
        return
    known = {one.name: one for one in ones}
    before, after = known.get(page.query.get("before", ""), ones[0]), known.get(page.query.get("after", ""), ones[-1])
    kind = page.query.get("kind", "changed") if page.query.get("kind", "changed") in KINDS else "changed"
    state = {"set": before.set, "before": before.name, "after": after.name, "kind": kind}
    _choice(page, sets, ones, state)
    await _prompts(page, evaluations, before, after, state)


def _said(state: Mapping[str, str]) -> dict[str, str]:
    """A state as in the address."""
    return {name: value for name, value in state.items() if value}


def _choice(page: Page, sets: Sequence[str], ones: Sequence[Version], state: Mapping[str, str]) -> None:
    def go(**changed: str) -> None:
        ui.navigate.to(page.address("evaluation", _said({**state, **changed})))

    names = {one.name: f"{one.name} ({100 * (one.accuracy or 0):.1f} %)" for one in ones}
    with box(classes="filters"):
        if len(sets) > 1:
            with box("label", "field"):
                said("span", "set")
                options = {one: one or "default" for one in sets}
                ui.select(
                    options, value=state["set"], on_change=lambda event: go(set=event.value, before="", after="")
                ).props("dense outlined")
        for label in ("before", "after"):
            with box("label", "field"):
                said("span", f"version {label}")
                ui.select(
                    names, value=state[label], on_change=lambda event, label=label: go(**{label: event.value})
                ).props("dense outlined")
        for name, words in KINDS.items():
            button = said("button", words, "quiet-button").props(
                f"type=button aria-pressed={'true' if name == state['kind'] else 'false'}"
            )
            button.on("click", partial(go, kind=name))


async def _prompts(
    page: Page, evaluations: Evaluations, before: Version, after: Version, state: Mapping[str, str]
) -> None:
    def ask(number: int) -> Changes:
        return evaluations.changes(before, after, kind=state["kind"], page=number)

    place = page.query.get("page", "")
    first = int(place) if place.isdecimal() and len(place) < 9 else 0
    found = await asyncio.to_thread(ask, first)
    with box(classes="legend").style("margin: 10px 0"):
        chip(f"learned {found.learned:,}", "good")
        chip(f"lost {found.lost:,}", "bad")
        chip(f"the same, or nearly {found.same:,}")
        if after.prompts != before.prompts:
            said(
                "span",
                f"of the prompts that both evaluations asked ({before.prompts:,} and {after.prompts:,})",
                "soft small",
            )

    async def turn(wanted: dict[str, Any]) -> None:
        number = wanted["page"]
        again = await asyncio.to_thread(ask, number)
        put(again.page.rows, again.page.total, number)
        page.keep(_said({**state, "page": str(number) if number else ""}))

    columns = [{"name": name, "label": label, "field": name, "align": align} for name, label, align in _COLUMNS]
    table = paged_table(columns, page=first, sort="", descending=False, on_request=turn, row_key="key")

    def put(rows: Sequence[Any], total: int, number: int) -> None:
        fill(table, [_shown(row) for row in rows], total=total, page=number, sort="", descending=False)

    put(found.page.rows, found.page.total, first)


def _shown(row: Any) -> dict[str, str]:
    def percent(value: float | None) -> str:
        return ABSENT if value is None else f"{100 * value:.0f}"

    return {
        "key": str(row["prompt"]),
        "prompt": f"{row['prompt']} ({row['prompt_id'][:10]})",
        "data_source": short(row["data_source"] or "", most=40),
        "before": percent(row["before"]),
        "after": percent(row["after"]),
        "change": ABSENT if row["change"] is None else f"{100 * row['change']:+.0f}",
        "answer": short(row["answer"] or ABSENT, most=60),
    }
