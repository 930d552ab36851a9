"""What the ledger says of the prompts of a run: how often each was asked, and how often it was solved."""

from collections.abc import Sequence
from dataclasses import dataclass

from sluice.ui.group_filter import PAGE_ROWS
from sluice.ui.ledger import Ledger, Page

BINS = 10

KINDS = {
    "never": "acc = 0",
    "always": "acc >= 0.9995",
    "between": "acc > 0 AND acc < 0.9995",
    "ungraded": "acc IS NULL",
    "all": "true",
}
"""Kind of prompt -> SQL over a prompt's mean accuracy."""

SORTABLE = ("groups", "acc", "last", "prompt_row", "data_source", "tokens")

_PROMPTS = (
    "SELECT prompt_id, min(prompt_row) AS prompt_row, min(data_source) AS data_source, count(*) AS groups, "
    "avg(acc_mean) FILTER (acc_mean >= 0) AS acc, arg_max(acc_mean, admission) AS last, "
    "count(*) FILTER (term = 'trained') AS trained, sum(tokens) AS tokens, max(prompt_epoch) AS epoch "
    "FROM groups GROUP BY prompt_id"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """All prompts of which a group has ended."""

    prompts: int
    groups: int
    never: int
    always: int
    between: int
    ungraded: int
    epochs: int
    """Passes over the data that have begun; 0 where no row came from the data."""
    histogram: Sequence[int]
    """Prompts by mean accuracy, in tenths; the last bin has 1 too."""


def coverage(ledger: Ledger) -> Coverage:
    """Raises NotReady while there is no ledger."""
    kinds = ", ".join(
        f"count(*) FILTER ({KINDS[kind]}) AS {kind}" for kind in ("never", "always", "between", "ungraded")
    )
    bins = ", ".join(
        f"count(*) FILTER (acc IS NOT NULL AND least(floor(acc * {BINS}), {BINS - 1}) = {at}) AS b{at}"
        for at in range(BINS)
    )
    (row,) = ledger.ask(
        f"SELECT count(*) AS prompts, coalesce(sum(groups), 0) AS groups, {kinds}, {bins}, max(epoch) + 1 AS epochs "
        f"FROM ({_PROMPTS})"
    )
    return Coverage(
        **{
            name: int(row[name] or 0)
            for name in ("prompts", "groups", "never", "always", "between", "ungraded", "epochs")
        },
        histogram=[row[f"b{at}"] for at in range(BINS)],
    )


def prompts(ledger: Ledger, *, kind: str = "all", sort: str = "groups", descending: bool = True, page: int = 0) -> Page:
    """One page of the prompts. Raises NotReady while there is no ledger."""
    where = KINDS.get(kind, KINDS["all"])
    order = f"{sort if sort in SORTABLE else 'groups'} {'DESC' if descending else 'ASC'} NULLS LAST, prompt_id"
    rows = ledger.ask(
        f"SELECT * FROM ({_PROMPTS}) WHERE {where} ORDER BY {order} LIMIT {PAGE_ROWS} OFFSET {page * PAGE_ROWS}"
    )
    (total,) = ledger.ask(f"SELECT count(*) AS total FROM ({_PROMPTS}) WHERE {where}")
    return Page(rows=rows, total=total["total"])
