"""Which groups the table of groups shows, in which order: the state that the address of the view holds."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

PAGE_ROWS = 50
"""Rows of one page of a table."""

MOST_PAGES = 10**9
"""A table that a page asks for more than these is asked for by hand."""

SORTABLE = (
    "admission",
    "term",
    "step",
    "data_source",
    "acc_mean",
    "mean_tokens",
    "samples",
    "age",
    "attempt",
    "ended_s",
)
"""Columns that the table can be ordered by."""

_WHOLE = ("step_low", "step_high", "age_low", "age_high", "page")
_NUMBERS = ("acc_low", "acc_high", "tokens_low", "tokens_high")


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupFilter:
    """An empty text and None stand for "any"."""

    term: str = ""
    """A term of the ledger; `filtered` and `failed` stand for all terms that begin so."""
    source: str = ""
    prompt: str = ""
    """A prompt's id, or its row in the data as a number."""
    rollout: str = ""
    """Groups that this rollout worked on."""
    step_low: int | None = None
    step_high: int | None = None
    acc_low: float | None = None
    acc_high: float | None = None
    age_low: int | None = None
    age_high: int | None = None
    tokens_low: float | None = None
    """Mean completion tokens of a sample."""
    tokens_high: float | None = None
    sort: str = "admission"
    descending: bool = True
    page: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError: order and page become words of a question in SQL, where no mark can stand for them."""
        if self.sort not in SORTABLE:
            raise ValueError(f"sort: must be one of {', '.join(SORTABLE)}, got {self.sort!r:.100}")
        if type(self.page) is not int or self.page < 0:
            raise ValueError(f"page: must be a whole number >= 0, got {self.page!r:.100}")

    def query(self) -> dict[str, str]:
        """What differs from the default, for an address."""
        default = GroupFilter()
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: f"{int(value)}"
            if isinstance(value, bool)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
            for name, value in said.items()
            if value != getattr(default, name) and value is not None
        }


def requested(pagination: Mapping[str, Any], *, sortable: Collection[str], sort: str) -> dict[str, Any]:
    """`page`, `sort` and `descending` that a table asks for: a browser may send anything. `sort` stands for what is none."""
    page, wanted = pagination.get("page"), pagination.get("sortBy")
    return {
        "page": page - 1 if type(page) is int and 0 < page < MOST_PAGES else 0,
        "sort": wanted if isinstance(wanted, str) and wanted in sortable else sort,
        "descending": bool(pagination.get("descending")),
    }


def group_filter(query: Mapping[str, str]) -> tuple[GroupFilter, list[str]]:
    """The filter of an address, and a line for each part of the address that is left out because it makes no sense."""
    found: dict[str, object] = {}
    problems: list[str] = []
    for name in (one.name for one in fields(GroupFilter)):
        text = query.get(name, "")[:200]
        if not text:
            continue
        try:
            found[name] = _value(name, text)
        except ValueError as error:
            problems.append(f"{name}: {error}, got {text!r}; left out")
    return GroupFilter(**found), problems  # type: ignore[arg-type]


def _value(name: str, text: str) -> object:
    """Raises ValueError with the rule."""
    if name == "descending":
        return text == "1"
    if name in _WHOLE:
        if not text.isdecimal() or len(text) > 15:
            raise ValueError("must be a whole number >= 0")
        return int(text)
    if name in _NUMBERS:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError("must be a number")
        return value
    if name == "sort" and text not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}")
    return text
