"""Which prompts teach: by pass rate, never solved ones and always solved ones, and how much of the data was seen."""

import asyncio
from typing import Any

from nicegui import ui

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT, quantity
from sluice.ui.charts import histogram_options
from sluice.ui.page import Page
from sluice.ui.parts import box, figure, fill, link, paged_table, panel, said
from sluice.ui.prompts import BINS, SORTABLE, Coverage, coverage, prompts
from sluice.ui.shown_text import short

KINDS = {
    "all": "all",
    "never": "never solved",
    "always": "always solved",
    "between": "sometimes solved",
    "ungraded": "not graded",
}

REFRESH_S = 10.0
_FIGURES = (
    "Prompts that were asked",
    "Groups",
    "Never solved",
    "Always solved",
    "Sometimes solved",
    "Passes over the data begun",
)
_COLUMNS = (
    ("prompt", "prompt", False),
    ("data_source", "source", True),
    ("groups", "groups", True),
    ("trained", "trained", False),
    ("acc", "right, %", True),
    ("last", "right in the newest group, %", True),
    ("tokens", "tokens generated", True),
)
_LEFT = ("prompt", "data_source")
_CELL = '<q-td :props="props"><a :href="props.row.href">{{ props.value }}</a></q-td>'


async def show(page: Page) -> None:
    """The view."""
    ledger = page.run.ledger_files().ledger
    kind = page.query.get("kind", "all")
    state: dict[str, Any] = {
        "kind": kind if kind in KINDS else "all",
        "sort": page.query.get("sort", "groups") if page.query.get("sort", "groups") in SORTABLE else "groups",
        "descending": page.query.get("descending", "1") != "0",
        "page": int(page.query["page"])
        if page.query.get("page", "").isdecimal() and len(page.query["page"]) < 9
        else 0,
    }
    head = _Head()
    with panel("Prompts"):
        with box(classes="filters"):
            for name, words in KINDS.items():
                query = {"kind": name} if name != "all" else {}
                link(words, page.address("data", query), "quiet-button").props(
                    f"aria-pressed={'true' if name == state['kind'] else 'false'}"
                )
        note = said("div", "", "soft small num").style("margin: 8px 0 2px; min-height: 1.4em")

        async def turn(wanted: dict[str, Any]) -> None:
            state.update(wanted)
            await load()

        table = paged_table(
            [
                {"name": n, "label": label, "field": n, "sortable": s, "align": "left" if n in _LEFT else "right"}
                for n, label, s in _COLUMNS
            ],
            page=state["page"],
            sort=state["sort"],
            descending=state["descending"],
            on_request=turn,
            row_key="prompt_id",
        )
        table.add_slot("body-cell-prompt", _CELL)
        table.style("min-height: 420px")

    async def load() -> None:
        found = await asyncio.to_thread(lambda: prompts(ledger, **state))
        note.text = f"{found.total:,} prompts"
        rows = [_shown(page, row) for row in found.rows]
        fill(table, rows, total=found.total, page=state["page"], sort=state["sort"], descending=state["descending"])
        page.keep(_query(state))

    seen: Coverage | None = None

    async def refresh() -> None:
        nonlocal seen
        now = await asyncio.to_thread(coverage, ledger)
        if now != seen:
            seen = now
            head.say(now, rows_of_data)
            await load()

    async def look_again() -> None:
        try:
            await refresh()
        except SluiceError as error:
            note.text = str(error)

    await ui.context.client.connected(timeout=60)
    rows_of_data = await asyncio.to_thread(_rows_of_data, page)
    await refresh()
    if page.run.live is not None:
        ui.timer(REFRESH_S, look_again)


def _query(state: dict[str, Any]) -> dict[str, str]:
    default = {"kind": "all", "sort": "groups", "descending": True, "page": 0}
    changed = {name: value for name, value in state.items() if value != default[name]}
    return {name: f"{int(value)}" if isinstance(value, bool) else str(value) for name, value in changed.items()}


def _rows_of_data(page: Page) -> int | None:
    """Rows of the training data, where its files are here; None elsewhere."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        files = page.run.config().data.train_files
        return sum(pq.read_metadata(one).num_rows for one in ([files] if isinstance(files, str) else files))
    except (SluiceError, OSError, pa.ArrowException):
        return None


class _Head:
    """Figures and the histogram; there before the ledger has answered, so that nothing below moves."""

    def __init__(self) -> None:
        with box(classes="figures"):
            self._figures = [figure(label, ABSENT, note="is being read") for label in _FIGURES]
        with box("section", "panel chart-box"):
            with box(classes="panel-head"):
                said("h2", "Prompts by pass rate")
                said("span", "mean of a prompt's groups", "soft small")
            options = histogram_options([0] * BINS)
            self._chart = ui.echart(options).props('role=img aria-label="prompts by pass rate"')

    def say(self, seen: Coverage, rows: int | None) -> None:
        """What the ledger says; `rows` of the data, where they are known."""
        share = f"{100 * seen.prompts / rows:.1f} % of {rows:,} rows" if rows else "of rows not counted here"
        told = (
            (seen.prompts, share),
            (seen.groups, f"{seen.groups / max(1, seen.prompts):.2f} a prompt"),
            (seen.never, _share(seen.never, seen.prompts)),
            (seen.always, _share(seen.always, seen.prompts)),
            (seen.between, _share(seen.between, seen.prompts)),
            (seen.epochs, ""),
        )
        for tile, (value, note) in zip(self._figures, told, strict=True):
            tile["value"].text, tile["note"].text = f"{value:,}", note
        self._chart.options.clear()
        self._chart.options.update(histogram_options(seen.histogram))
        self._chart.update()


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _shown(page: Page, row: Any) -> dict[str, Any]:
    place = row["prompt_row"]

    def percent(value: float | None) -> str:
        return ABSENT if value is None or value < 0 else f"{100 * value:.0f}"

    return {
        "prompt_id": row["prompt_id"],
        "prompt": f"row {place:,}" if place is not None and place >= 0 else short(row["prompt_id"], most=24),
        "href": page.address("groups", {"prompt": row["prompt_id"]}),
        "data_source": short(row["data_source"] or "", most=40),
        "groups": f"{row['groups']:,}",
        "trained": f"{row['trained']:,}",
        "acc": percent(row["acc"]),
        "last": percent(row["last"]),
        "tokens": quantity(row["tokens"] or 0),
    }
