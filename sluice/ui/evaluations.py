"""RUN/evaluations as a table: which prompts each evaluated version solves, and what changed between two of them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from sluice.errors import NotReady
from sluice.run_dir.evaluation_schema import EVALUATIONS_FOLDER
from sluice.ui.group_filter import PAGE_ROWS
from sluice.ui.ledger import Page, connected, quoted

CHANGED = 0.5
"""By so much a prompt's accuracy has to change to count as learned or lost."""

_KINDS = {"learned": f"change >= {CHANGED}", "lost": f"change <= -{CHANGED}", "changed": "change <> 0", "all": "true"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One evaluated version of one set."""

    set: str
    lineage: str
    version: int
    prompts: int
    accuracy: float | None

    @property
    def name(self) -> str:
        """The version's name as addresses have it: a12."""
        return f"{self.lineage}{self.version}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Two versions of one set, prompt by prompt."""

    learned: int
    lost: int
    same: int
    page: Page


class Evaluations:
    """The evaluations of one run directory. Any thread may ask."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / EVALUATIONS_FOLDER
        self._lock = threading.Lock()
        self._opened: duckdb.DuckDBPyConnection | None = None

    def versions(self) -> list[Version]:
        """Every evaluated version, by set and number. Raises NotReady while there is none."""
        rows = self._ask(
            'SELECT "set", lineage, version, count(*) AS prompts, avg(accuracy) AS accuracy FROM evaluated '
            'GROUP BY "set", lineage, version ORDER BY "set", version, lineage'
        )
        return [Version(**row) for row in rows]

    def changes(self, before: Version, after: Version, *, kind: str = "changed", page: int = 0) -> Changes:
        """What `after` solves and `before` did not, and the other way round, largest change first."""
        pairs = (
            "WITH pairs AS (SELECT b.prompt_id, b.prompt, b.data_source, b.accuracy AS before, a.accuracy AS after, "
            "a.accuracy - b.accuracy AS change, a.majority_answer AS answer FROM evaluated AS b JOIN evaluated AS a "
            'ON a."set" = b."set" AND a.prompt = b.prompt AND a.prompt_id = b.prompt_id '
            'WHERE b."set" = ? AND b.lineage = ? AND b.version = ? AND a.lineage = ? AND a.version = ?) '
        )
        values = [before.set, before.lineage, before.version, after.lineage, after.version]
        where = _KINDS.get(kind, _KINDS["changed"])
        (counts,) = self._ask(
            f"{pairs} SELECT count(*) FILTER ({_KINDS['learned']}) AS learned, count(*) FILTER ({_KINDS['lost']}) AS lost, "
            f"count(*) AS total, count(*) FILTER ({where}) AS shown FROM pairs",
            values,
        )
        order = "change ASC" if kind == "lost" else "change DESC" if kind == "learned" else "abs(change) DESC"
        limits = f"ORDER BY {order}, prompt LIMIT {PAGE_ROWS} OFFSET {page * PAGE_ROWS}"
        rows = self._ask(f"{pairs} SELECT * FROM pairs WHERE {where} {limits}", values)
        return Changes(
            learned=counts["learned"],
            lost=counts["lost"],
            same=counts["total"] - counts["learned"] - counts["lost"],
            page=Page(rows=rows, total=counts["shown"]),
        )

    def _ask(self, question: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The rows of a question; the word `evaluated` stands for all files."""
        files = sorted(self._folder.glob("*.parquet"))
        if not files:
            raise NotReady(
                f"{self._folder}: has no evaluation yet; `sluice evaluate` makes one, and so does eval.every_steps of a recipe"
            )
        listing = ", ".join(quoted(str(file)) for file in files)
        question = question.replace("evaluated", f"read_parquet([{listing}], union_by_name = true)")
        with self._lock:
            if self._opened is None:
                self._opened = connected(self._folder)
            try:
                answer = self._opened.execute(question, list(values))
                names = [column[0] for column in answer.description or ()]
                return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
            except duckdb.Error as error:
                raise NotReady(f"{self._folder}: a file cannot be read: {str(error).splitlines()[0]}") from error
