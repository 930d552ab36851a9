"""The pieces that views are made of. Each takes text and makes text nodes; none takes markup."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

from sluice.ui.group_filter import PAGE_ROWS, requested
from sluice.ui.shown_text import shown, visible

TERMS: Mapping[str, tuple[str, str]] = {
    "trained": ("good", "#009e73"),
    "assigned": ("good", "#53b99a"),
    "queued": ("good", "#8fcfbb"),
    "scored": ("", "#9aa3af"),
    "in_flight": ("info", "#8fbfe2"),
    "pending": ("", "#b6bdc8"),
    "filtered_all_right": ("info", "#1c82c9"),
    "filtered_all_wrong": ("warn", "#e08a3c"),
    "filtered_other": ("", "#c46a9b"),
    "stale": ("", "#7f8794"),
    "surplus": ("", "#8a7f2c"),
    "rollback": ("", "#5f6773"),
    "failed": ("bad", "#b0402f"),
    "abandoned": ("", "#a39a86"),
}
"""Term of the ledger -> kind of chip, colour in a picture."""


def term_look(term: str) -> tuple[str, str, str]:
    """Words, kind of chip and colour of a term, `failed:REASON` too."""
    kind, colour = TERMS.get(term.partition(":")[0], ("", "#7f8794"))
    return term.replace("_", " "), kind, colour


def said(tag: str, text: str, classes: str = "") -> TextElement:
    """An element with one text."""
    return TextElement(tag=tag, text=visible(text)).classes(classes)


def box(tag: str = "div", classes: str = "") -> Element:
    """An element for others."""
    return ui.element(tag).classes(classes)


def panel(title: str = "", classes: str = "", note: str = "") -> Element:
    """A framed part of a view, with a heading."""
    whole = box("section", f"panel {classes}")
    if title:
        with whole, box(classes="panel-head"):
            said("h2", title)
            if note:
                said("span", note, "soft small")
    return whole


def chip(text: str, kind: str = "") -> TextElement:
    """A word with a ground: good, info, warn, bad, or none."""
    return said("span", text, f"chip {kind}")


def link(text: str, target: str, classes: str = "") -> TextElement:
    """A link within the pages."""
    element = said("a", text, classes)
    element._props["href"] = target
    return element


def figure(label: str, value: str, unit: str = "", note: str = "") -> dict[str, TextElement]:
    """A tile with one figure; the parts that may change while the page is open."""
    with box(classes="figure"):
        said("div", label, "label")
        with box(classes="value"):
            shown, its_unit = said("span", value), said("span", unit, "unit")
        noted = said("div", note, "note")
    return {"value": shown, "unit": its_unit, "note": noted}


def empty(what: str, how: str) -> None:
    """In the place of something that is not there: what, and what to do."""
    with box("section", "panel empty").props("role=status"):
        said("div", what, "what")
        said("div", how, "how")


def text_block(text: str) -> None:
    """Text of a run, whatever it holds, with the lines that it has."""
    piece = shown(text)
    said("pre", piece.text, "said mono").props("dir=auto tabindex=0")
    if piece.note:
        said("div", piece.note, "soft small")


def plain_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str | Callable[[], object]]],
    *,
    right: Sequence[int] = (),
    is_wide: bool = False,
) -> None:
    """A short table; a cell is a text, or a function that makes the cell's content. On a phone each row of a wide table is a
    card whose cells have their column's name above them."""
    with box(classes="scroll-x"), box("table", "plain wide" if is_wide else "plain"):
        with box("thead"), box("tr"):
            for place, name in enumerate(head):
                said("th", name, "right" if place in right else "").props("scope=col")
        with box("tbody"):
            for row in rows:
                with box("tr"):
                    for place, cell in enumerate(row):
                        classes = "right num" if place in right else ""
                        if isinstance(cell, str):
                            drawn: Element = said("td", cell, classes)
                        else:
                            with box("td", classes) as drawn:
                                cell()
                        if is_wide:
                            drawn._props["data-label"] = head[place]


def paged_table(
    columns: Sequence[Mapping[str, Any]],
    *,
    page: int,
    sort: str,
    descending: bool,
    on_request: Callable[[dict[str, Any]], Any],
    row_key: str,
) -> ui.table:
    """A table whose rows the server picks; `fill` gives the rows. `on_request` gets page, sort and descending."""
    pagination = {"page": page + 1, "rowsPerPage": PAGE_ROWS, "rowsNumber": 0, "sortBy": sort, "descending": descending}
    table = ui.table(rows=[], columns=[dict(one) for one in columns], row_key=row_key, pagination=pagination)
    table.props(f'flat dense binary-state-sort :rows-per-page-options="[{PAGE_ROWS}]" no-data-label="is being read"')
    table.classes("full-width")
    sortable = [one["name"] for one in columns if one.get("sortable")]

    async def asked(event: Any) -> None:
        await on_request(requested(event.args["pagination"], sortable=sortable, sort=sort))

    table.on("request", asked)
    return table


def fill(table: ui.table, rows: list[dict[str, Any]], *, total: int, page: int, sort: str, descending: bool) -> None:
    """Shows one page of rows."""
    table._props["pagination"] = {
        "page": page + 1,
        "rowsPerPage": PAGE_ROWS,
        "rowsNumber": total,
        "sortBy": sort,
        "descending": descending,
    }
    table.props('no-data-label="no row fits"')
    table.rows = rows
    table.update()
