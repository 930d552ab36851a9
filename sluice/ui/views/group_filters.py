"""The fields above the table of groups; each change asks the ledger anew."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from nicegui import ui

from sluice.ui.group_filter import GroupFilter, group_filter
from sluice.ui.page import Page
from sluice.ui.parts import box, said, term_look

_RANGES = (
    ("acc", "right, share 0 to 1"),
    ("age", "age, steps"),
    ("tokens", "tokens a sample"),
    ("step", "step"),
)


class Filters:
    """`wanted` is what the address says; `want` takes what has changed."""

    def __init__(self, page: Page, wanted: GroupFilter, want: Callable[..., Awaitable[None]]) -> None:
        self._page, self._wanted, self._want = page, wanted, want

    def fields(self) -> None:
        """Makes them all, so that nothing below moves when `know` says what the ledger has."""
        self._terms = self._select("verdict", "term")
        self._sources = self._select("source", "source")
        self._text("prompt (id or row)", "prompt", 9.4)
        self._text("rollout", "rollout", 6.9)
        for name, label in _RANGES:
            self._range(name, label)
        clear = said("button", "Clear", "quiet-button").props("type=button")
        clear.on("click", lambda: ui.navigate.to(self._page.address("groups")))

    def know(self, terms: Sequence[str], sources: Sequence[str]) -> None:
        """What there is to choose from: the verdicts and the sources that the ledger has."""
        verdicts = {"": "any"}
        verdicts |= {"filtered": "filtered (all)"} if any(term.startswith("filtered") for term in terms) else {}
        verdicts |= {"failed": "failed"} if any(term.startswith("failed:") for term in terms) else {}
        verdicts |= {term: term_look(term)[0] for term in terms}
        self._terms.set_options(self._chosen("term") | verdicts)
        self._sources.set_options(self._chosen("source") | {"": "any", **{one: one for one in sources}})

    def _chosen(self, name: str) -> dict[str, str]:
        """What the address says, as an option."""
        value = getattr(self._wanted, name)
        return {"": "any"} | ({value: term_look(value)[0] if name == "term" else value} if value else {})

    def _select(self, label: str, name: str) -> ui.select:
        async def change(event: Any) -> None:
            await self._want(**{name: event.value, "page": 0})

        with box("label", "field"):
            said("span", label)
            select = ui.select(self._chosen(name), value=getattr(self._wanted, name), on_change=change)
            return select.props("dense outlined options-dense")

    def _text(self, label: str, name: str, width_rem: float) -> None:
        async def change(event: Any) -> None:
            await self._want(**{name: (event.value or "").strip()[:200], "page": 0})

        with box("label", "field").style(f"width: {width_rem}rem"):
            said("span", label)
            field = ui.input(value=getattr(self._wanted, name), on_change=change)
            field.props("dense outlined debounce=250 clearable").props(f'aria-label="{label}"')

    def _range(self, name: str, label: str) -> None:
        with box(classes="field"):
            said("span", label)
            with box().style("display: flex; gap: 4px"):
                for end in ("low", "high"):
                    self._end(
                        f"{name}_{end}",
                        f"{label}, {'from' if end == 'low' else 'to'}",
                        "from" if end == "low" else "to",
                    )

    def _end(self, name: str, label: str, hint: str) -> None:
        async def change(event: Any) -> None:
            found, problems = group_filter({name: (event.value or "").strip()})
            field.props(f"error={'true' if problems else 'false'}")
            if not problems:
                await self._want(**{name: getattr(found, name), "page": 0})

        value = getattr(self._wanted, name)
        field = ui.input(value="" if value is None else f"{value:g}", placeholder=hint, on_change=change)
        field.props(
            f'dense outlined debounce=250 hide-bottom-space no-error-icon aria-label="{label}" inputmode=decimal'
        ).style("width: 4.7rem; min-width: 0")
