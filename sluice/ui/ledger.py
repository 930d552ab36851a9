"""The ledger of a run as a table that is asked for pages: DuckDB reads the columns and row groups that a question needs.

Nothing here holds the rows of a run. A file that cannot be read is named in `damaged` and left out. For threads other than the
event loop's: a question takes milliseconds to seconds. Columns: docs/ledger.md.
"""

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from sluice.errors import NotReady
from sluice.run_dir.ledger_parts import open_parts, opened, part_paths
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from sluice.ui.group_filter import PAGE_ROWS, GroupFilter

SETTINGS: Final[dict[str, bool | float | int | list[str] | str]] = {
    "threads": 2,
    "memory_limit": "1GB",
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
"""Bounded, and never a request to DuckDB's servers for an extension."""


def connected(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database without tables whose questions reach the files of `folder` and no others, whatever they say."""
    database = duckdb.connect(":memory:", config=SETTINGS)
    database.execute(f"SET allowed_directories = [{quoted(str(folder))}]")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


Row = Mapping[str, Any]

_LISTED = (
    "group_id, admission, prompt_id, prompt_row, data_source, term, fault, step, oldest_version, samples, tokens, acc_mean, "
    "attempt, admitted_s, ended_s, mean_tokens, age"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Some rows of a table, and how many there are."""

    rows: Sequence[Row]
    total: int


class Ledger:
    """RUN/ledger. Any thread may ask; the files are listed anew when the folder has changed."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._opened: duckdb.DuckDBPyConnection | None = None
        self._listed: tuple[tuple[str, int, int], ...] | None = None
        self._known_bad: dict[str, str] = {}
        self.damaged: Mapping[str, str] = {}
        """File -> why it cannot be read."""

    def page(self, wanted: GroupFilter) -> Page:
        """The groups of one page of the table. Raises NotReady while there is no ledger."""
        where, values = _conditions(wanted)
        direction = "DESC" if wanted.descending else "ASC"
        order = f"{wanted.sort} {direction} NULLS LAST, admission {direction}"
        limits = f"LIMIT {PAGE_ROWS} OFFSET {wanted.page * PAGE_ROWS}"
        rows = self.ask(f"SELECT {_LISTED} FROM groups WHERE {where} ORDER BY {order} {limits}", values)
        (total,) = self.ask(f"SELECT count(*) AS total FROM groups WHERE {where}", values)
        return Page(rows=rows, total=total["total"])

    def neighbours(self, admission: int) -> tuple[str | None, str | None]:
        """The ids of the ended groups admitted before and after."""
        found = []
        for sign, order in (("<", "DESC"), (">", "ASC")):
            question = f"SELECT group_id FROM groups WHERE admission {sign} ? ORDER BY admission {order} LIMIT 1"
            rows = self.ask(question, [admission])
            found.append(rows[0]["group_id"] if rows else None)
        return found[0], found[1]

    def terms(self) -> Mapping[str, int]:
        """Ended groups by term, most first."""
        rows = self.ask("SELECT term, count(*) AS groups FROM groups GROUP BY term ORDER BY groups DESC, term")
        return {row["term"]: row["groups"] for row in rows}

    def sources(self) -> Sequence[str]:
        """Data sources by name."""
        return [row["data_source"] for row in self.ask("SELECT DISTINCT data_source FROM groups ORDER BY 1 LIMIT 200")]

    def ask(self, question: str, values: Sequence[object] = ()) -> list[dict[str, Any]]:
        """The rows of one question over the table `groups`. Raises NotReady while there is no ledger."""
        with self._lock:
            try:
                return self._answer(question, values)
            except (duckdb.Error, OSError):
                if self._stamps() == self._listed:  # otherwise files were merged meanwhile
                    self._find_damage()
                self._listed = None
            try:
                return self._answer(question, values)
            except (duckdb.Error, OSError) as error:
                raise NotReady(f"{self._run_dir}/ledger: cannot be read now: {str(error).splitlines()[0]}") from error

    def _answer(self, question: str, values: Sequence[object]) -> list[dict[str, Any]]:
        self._list()
        return _rows(self._database.execute(question, list(values)))

    def _stamps(self) -> tuple[tuple[str, int, int], ...]:
        """Every file by name, size and time."""
        found = []
        for path in part_paths(self._run_dir):
            with contextlib.suppress(FileNotFoundError):  # merged into the one before it meanwhile
                stat = path.stat()
                found.append((path.name, stat.st_size, stat.st_mtime_ns))
        return tuple(found)

    @property
    def _database(self) -> duckdb.DuckDBPyConnection:
        """Opened with the first question: it has threads of its own."""
        if self._opened is None:
            self._opened = connected(self._run_dir / "ledger")
        return self._opened

    def _list(self) -> None:
        """Makes the view `groups` of the files that are there now."""
        listed = self._stamps()
        if listed == self._listed:
            return
        parts = [part for part in open_parts(self._run_dir) if part.path.name not in self._known_bad]
        good = {part.path.name for part in parts}
        self.damaged = {
            name: why for name, *_ in listed if name not in good and (why := self._why_damaged(name)) is not None
        }
        if not parts:
            raise NotReady(
                f"{self._run_dir}/ledger: has no file that can be read yet; the coordinator writes one every 20 steps, with "
                "checkpoints and at the end"
            )
        self._database.execute(
            _view([(part.path, part.known) for part in parts], self._columns([p.path for p in parts]))
        )
        self._listed = listed

    def _columns(self, paths: Sequence[Path]) -> set[str]:
        listing = ", ".join(quoted(str(path)) for path in paths)
        told = self._database.execute(
            f"DESCRIBE SELECT * FROM read_parquet([{listing}], union_by_name = true)"
        ).fetchall()
        return {column[0] for column in told}

    def _why_damaged(self, name: str) -> str | None:
        if name in self._known_bad:
            return self._known_bad[name]
        try:
            with opened(self._run_dir / "ledger" / name):
                return None  # its rows are all in an earlier file
        except (pa.ArrowException, OSError) as error:
            return str(error)

    def _find_damage(self) -> None:
        """Files with pages that do not fit their checksums are left out from now on."""
        for path in part_paths(self._run_dir):
            if path.name in self._known_bad:
                continue
            try:
                with opened(path) as file:
                    for group in range(file.metadata.num_row_groups):
                        file.read_row_group(group)
            except FileNotFoundError:
                continue  # merged into the one before it meanwhile
            except (pa.ArrowException, OSError) as why:
                self._known_bad[path.name] = str(why)


def _rows(answer: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _view(parts: Sequence[tuple[Path, int]], columns: set[str]) -> str:
    """Every row once: rows that an earlier file has too are left out; a column that the files lack is null."""
    names = [name if name in columns else f"NULL AS {name}" for name in LEDGER_SCHEMA.names]
    listing = ", ".join(quoted(str(path)) for path, _ in parts)
    again = [
        f"NOT (filename = {quoted(str(path))} AND file_row_number < {known})" for path, known in parts if known > 0
    ]
    extra = ", filename = true, file_row_number = true" if again else ""
    return (
        f"CREATE OR REPLACE VIEW groups AS SELECT {', '.join(names)}, "
        "CASE WHEN samples > 0 THEN tokens / samples END AS mean_tokens, "
        "CASE WHEN step >= 0 AND oldest_version >= 0 THEN step - oldest_version END AS age "
        f"FROM read_parquet([{listing}], union_by_name = true{extra}) WHERE {' AND '.join(again) or 'true'}"
    )


def _conditions(wanted: GroupFilter) -> tuple[str, list[object]]:
    """SQL with a mark for every value."""
    parts: list[str] = ["true"]
    values: list[object] = []

    def add(condition: str, *given: object) -> None:
        parts.append(condition)
        values.extend(given)

    if wanted.term in ("filtered", "failed"):
        add("starts_with(term, ?)", wanted.term)
    elif wanted.term:
        add("term = ?", wanted.term)
    if wanted.source:
        add("data_source = ?", wanted.source)
    if wanted.prompt.isdecimal() and len(wanted.prompt) < 16:
        add("(prompt_row = ? OR prompt_id = ?)", int(wanted.prompt), wanted.prompt)
    elif wanted.prompt:
        add("prompt_id = ?", wanted.prompt)
    if wanted.rollout:
        add("list_contains(list_transform(attempts, lambda one: one.rollout), ?)", wanted.rollout)
    for column, low, high in (
        ("step", wanted.step_low, wanted.step_high),
        ("acc_mean", wanted.acc_low, wanted.acc_high),
        ("age", wanted.age_low, wanted.age_high),
        ("mean_tokens", wanted.tokens_low, wanted.tokens_high),
    ):
        if low is not None or (high is not None and column in ("step", "acc_mean")):
            add(f"{column} >= ?", 0 if low is None else low)  # -1 stands for unknown
        if high is not None:
            add(f"{column} <= ?", high)
    return " AND ".join(parts), values
