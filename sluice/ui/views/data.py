"""Which prompts teach: by pass rate, never solved ones and always solved ones, and how much of the data was seen."""

import asyncio
from typing import Any

from nicegui import ui

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT, quantity
from sluice.ui.charts import histogram_options
from sluice.ui.page import Page
from sluice.ui.parts import box, figure, fill, link, paged_table, panel, said
from sluice.ui.prompts import SORTABLE, Coverage, coverage, prompts
from sluice.ui.shown_text import short

KINDS = {
    "all": "all",
    "never": "never solved",
    "always": "always solved",
    "between": "sometimes solved",
    "ungraded": "not graded",
}

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
    head = box().style("min-height: 330px")
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

    await ui.context.client.connected(timeout=60)
    seen = await asyncio.to_thread(coverage, ledger)
    rows_of_data = await asyncio.to_thread(_rows_of_data, page)
    with head:
        _head(seen, rows_of_data)
    await load()


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


def _head(seen: Coverage, rows: int | None) -> None:
    with box(classes="figures"):
        share = (
            f"{100 * seen.prompts / rows:.1f} % of {rows:,} rows"
            if rows
            else "the data's files are not here to compare"
        )
        figure("Prompts that were asked", f"{seen.prompts:,}", note=share)
        figure("Groups", f"{seen.groups:,}", note=f"{seen.groups / max(1, seen.prompts):.2f} a prompt")
        figure("Never solved", f"{seen.never:,}", note=_share(seen.never, seen.prompts))
        figure("Always solved", f"{seen.always:,}", note=_share(seen.always, seen.prompts))
        figure(
            "Sometimes solved",
            f"{seen.between:,}",
            note=f"{_share(seen.between, seen.prompts)}: what dynamic sampling keeps",
        )
        figure("Passes over the data begun", f"{seen.epochs:,}")
    with box("section", "panel chart-box").style("margin-top: 14px"):
        with box(classes="panel-head"):
            said("h2", "Prompts by pass rate")
            said("span", "mean over all graded groups of a prompt", "soft small")
        ui.echart(histogram_options(seen.histogram)).props('role=img aria-label="prompts by pass rate"')


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
