"""Every group that has ended, filtered and ordered in the ledger, and the groups that are live now."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT, number
from sluice.ui.group_filter import GroupFilter, group_filter
from sluice.ui.ledger import Ledger, Row
from sluice.ui.ledger import Page as Rows
from sluice.ui.page import Page
from sluice.ui.parts import box, fill, paged_table, panel, said, term_look
from sluice.ui.shown_text import short
from sluice.ui.views.group_filters import Filters
from sluice.ui.views.live_groups import live_groups

REFRESH_S = 5.0

_COLUMNS: Sequence[tuple[str, str, bool]] = (
    ("admission", "group", True),
    ("term", "verdict", True),
    ("step", "step", True),
    ("acc_mean", "right, %", True),
    ("mean_tokens", "tokens a sample", True),
    ("samples", "samples", True),
    ("age", "age, steps", True),
    ("attempt", "attempts", True),
    ("data_source", "source", True),
    ("prompt", "prompt", False),
    ("ended_s", "ended", True),
)
_GROUP_CELL = '<q-td :props="props"><a :href="props.row.href">{{ props.value }}</a></q-td>'
_TERM_CELL = (
    '<q-td :props="props">'
    '<span :class="`chip ${props.row.kind}`" :title="props.row.fault">{{ props.value }}</span>'
    "</q-td>"
)
_PROMPT_CELL = '<q-td :props="props"><a :href="props.row.prompt_href" class="mono">{{ props.value }}</a></q-td>'
_LEFT = ("term", "data_source", "prompt", "ended_s")


async def show(page: Page) -> None:
    """The view."""
    if page.run.live is not None:
        await live_groups(page)
    if page.run.files is None:
        said(
            "div",
            "The run's directory is not on this machine, so groups that ended a while ago are not here; `sluice ui` shows "
            "them where the directory is.",
            "note-line",
        )
        return
    wanted, problems = group_filter(page.query)
    table = _Table(page, wanted)
    for problem in problems:
        said("div", f"The address said {problem}.", "note-line warn")
    await ui.context.client.connected(timeout=60)
    await table.load()
    ui.timer(REFRESH_S, table.ask)


class _Table:
    """The table with its filters; `wanted` is what the address says."""

    def __init__(self, page: Page, wanted: GroupFilter) -> None:
        self.page, self.wanted = page, wanted
        self.ledger: Ledger = page.run.ledger_files().ledger
        with panel("Groups that have ended"):
            self.filters = Filters(page, wanted, self._want)
            with box(classes="filters"):
                self.filters.fields()
            self.note = said("div", "", "soft small num").style("margin: 8px 0 2px; min-height: 1.4em")
            self.damage = box()
            self.rows = paged_table(
                [_column(*one) for one in _COLUMNS],
                page=wanted.page,
                sort=wanted.sort,
                descending=wanted.descending,
                on_request=self._turn,
                row_key="group_id",
            )
            self.rows.style("min-height: 420px")
        self.rows.add_slot("body-cell-admission", _GROUP_CELL)
        self.rows.add_slot("body-cell-term", _TERM_CELL)
        self.rows.add_slot("body-cell-prompt", _PROMPT_CELL)
        self.total = -1
        self.is_filled = False
        self.named: dict[str, str] = {}

    async def load(self) -> None:
        """Fills filters and rows for the first time; again later where there is no ledger yet."""
        try:
            terms, sources = await asyncio.to_thread(lambda: (self.ledger.terms(), self.ledger.sources()))
        except SluiceError as error:
            self.note.text = str(error)
            self.rows.props('no-data-label="no row yet"')
            return
        self.is_filled = True
        self.filters.know(list(terms), list(sources))
        await self.ask()

    async def ask(self) -> None:
        """Asks for the page that is shown; rows may have come."""
        if not self.is_filled:
            await self.load()
            return
        wanted = self.wanted
        begun = time.perf_counter()
        try:
            found: Rows = await asyncio.to_thread(self.ledger.page, wanted)
        except SluiceError as error:
            self.note.text = str(error)
            return
        if wanted is not self.wanted:
            return  # another question was asked meanwhile
        took_ms = 1000 * (time.perf_counter() - begun)
        rows = [_shown(self.page, row) for row in found.rows]
        self.note.text = f"{found.total:,} groups fit" + (
            "" if found.total != 0 else "; widen a filter, or clear all of them"
        )
        self.note.props(f'title="asked in {took_ms:.0f} ms"')
        if rows != self.rows.rows or found.total != self.total:
            self.total = found.total
            fill(self.rows, rows, total=found.total, page=wanted.page, sort=wanted.sort, descending=wanted.descending)
        self._say_damage()

    def _say_damage(self) -> None:
        if self.named == self.ledger.damaged:
            return
        self.named = dict(self.ledger.damaged)
        self.damage.clear()
        with self.damage:
            for name, why in self.ledger.damaged.items():
                said("div", f"ledger/{name} cannot be read, its groups are missing here: {short(why)}", "note-line bad")

    async def _turn(self, wanted: dict[str, Any]) -> None:
        await self._want(**wanted)

    async def _want(self, **changed: Any) -> None:
        self.wanted = dataclasses.replace(self.wanted, **changed)
        self.page.keep(self.wanted.query())
        await self.ask()


def _column(name: str, label: str, sortable: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "field": name,
        "sortable": sortable,
        "align": "left" if name in _LEFT else "right",
    }


def _shown(page: Page, row: Row) -> dict[str, Any]:
    """A row as texts."""
    words, kind, _ = term_look(row["term"])
    place = row["prompt_row"]
    named = f"row {place:,}" if place is not None and place >= 0 else row["prompt_id"][:12]
    acc, tokens, age = row["acc_mean"], row["mean_tokens"], row["age"]
    return {
        "group_id": row["group_id"],
        "admission": f"{row['admission']:,}",
        "href": page.group(row["group_id"]),
        "term": words,
        "kind": kind,
        "fault": short(row["fault"] or ""),
        "step": f"{row['step']:,}" if row["step"] is not None and row["step"] >= 0 else ABSENT,
        "acc_mean": ABSENT if acc is None or acc < 0 else f"{100 * acc:.0f}",
        "mean_tokens": ABSENT if tokens is None else number(tokens),
        "samples": ABSENT if row["samples"] is None else str(row["samples"]),
        "age": ABSENT if age is None else str(age),
        "attempt": str(row["attempt"]),
        "data_source": short(row["data_source"] or "", most=40),
        "prompt": short(named, most=24),
        "prompt_href": page.address("groups", {"prompt": row["prompt_id"]}),
        "ended_s": _when(row["ended_s"]),
    }


def _when(unix_s: float | None) -> str:
    return ABSENT if unix_s is None or unix_s <= 0 else time.strftime("%d %b %H:%M:%S", time.localtime(unix_s))
