"""RUN/ledger/*.parquet as rows and as SQL tables, with every group that has ended. Columns: docs/ledger.md.

`groups` has the plain columns. The two columns that hold lists become the tables `attempts` and `samples`, whose rows
carry the group's id. A live run writes its rows every 20 steps and with every checkpoint.
"""

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sluice.errors import InvalidRequest, NotFound
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA

LISTS = {"attempts": "attempts", "samples": "completions"}
"""Table -> the column of the files that holds the table's rows."""

_AFFINITIES = ((pa.types.is_integer, "INTEGER"), (pa.types.is_floating, "REAL"))


def ledger_files(run_dir: Path) -> list[Path]:
    """The files of a run's ledger, oldest rows first. Raises NotFound."""
    if not run_dir.is_dir():
        raise NotFound(f"{run_dir}: no such run directory")
    files = sorted((run_dir / "ledger").glob("part-*.parquet"))
    if not files:
        raise NotFound(
            f"{run_dir}: has no ledger/*.parquet yet; they come every 20 steps, with checkpoints and at the end"
        )
    return files


@contextlib.contextmanager
def damage_skipped(path: Path) -> Iterator[None]:
    """Ends the block with a line on stderr where a file of the ledger cannot be read; the other files can."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        sys.stderr.write(f"warning: {path} cannot be read, its groups are missing here: {error}\n")


def opened(path: Path) -> pq.ParquetFile:
    """A file of the ledger, whose pages are compared with their checksums. Raises ArrowException, OSError."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def find_row(run_dir: Path, wanted: str) -> dict[str, Any] | None:
    """The row of the group with this id, or with this number in the order of admission; None without such a row."""
    is_number = wanted.isdecimal() and len(wanted) < 19
    column, value = ("admission", int(wanted)) if is_number else ("group_id", wanted)
    for path in sorted((run_dir / "ledger").glob("part-*.parquet"), reverse=True):
        with damage_skipped(path), opened(path) as file:
            place = file.read(columns=[column]).column(0).index(value).as_py()
            if place >= 0:
                return file.read().slice(place, 1).to_pylist()[0]
    return None


def nearest_ids(run_dir: Path, wanted: str, *, count: int = 3) -> list[str]:
    """Ids of the ended groups with the admission numbers closest to the number at the end of `wanted`, closest first."""
    digits = wanted[len(wanted.rstrip("0123456789")) :]
    number = int(digits[-18:] or "0")
    with contextlib.closing(open_tables(run_dir)) as tables:
        closest = "SELECT group_id FROM groups ORDER BY abs(admission - ?), admission LIMIT ?"
        return [name for (name,) in tables.execute(closest, (number, count))]


def open_tables(run_dir: Path, *, lists: bool = False) -> sqlite3.Connection:
    """A read-only database in memory: `groups`, and with `lists` also `attempts` and `samples`. Raises NotFound."""
    tables = sqlite3.connect(":memory:")
    names: dict[Path, set[str]] = {}  # an older file may have fewer columns
    for path in ledger_files(run_dir):
        with damage_skipped(path):
            names[path] = set(pq.read_schema(path).names)
    files = list(names)
    plain = [field for field in LEDGER_SCHEMA if not pa.types.is_list(field.type)]
    _create(tables, "groups", plain)
    for path in files:
        columns = [field.name for field in plain if field.name in names[path]]
        with damage_skipped(path):
            _insert(tables, "groups", columns, list(_rows(path, columns)))
    for name, column in LISTS.items() if lists else ():
        fields = [pa.field("group_id", pa.string()), *LEDGER_SCHEMA.field(column).type.value_type]
        _create(tables, name, fields)
        for path in files:
            if column in names[path]:
                with damage_skipped(path):
                    _insert(tables, name, [field.name for field in fields], list(_entries(path, column, fields[1:])))
    tables.commit()
    tables.execute("PRAGMA query_only = ON")
    return tables


def select(run_dir: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of one SQL statement over the tables. Raises InvalidRequest with a list of the tables."""
    with contextlib.closing(open_tables(run_dir, lists=True)) as tables:
        try:
            cursor = tables.execute(sql)
            return [column[0] for column in cursor.description or ()], cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise InvalidRequest(f"--sql: {error}; {_described(tables)}") from error


def _described(tables: sqlite3.Connection) -> str:
    names = [name for (name,) in tables.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    columns = {name: [info[1] for info in tables.execute(f"PRAGMA table_info({name})")] for name in names}
    return "the tables are " + ", ".join(f"{name}({', '.join(columns[name])})" for name in names)


def _create(tables: sqlite3.Connection, name: str, fields: list[pa.Field]) -> None:
    columns = ", ".join(f"{field.name} {_affinity(field.type)}" for field in fields)
    tables.execute(f"CREATE TABLE {name} ({columns})")


def _affinity(type_: pa.DataType) -> str:
    return next((name for is_one, name in _AFFINITIES if is_one(type_)), "TEXT")


def _insert(tables: sqlite3.Connection, name: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    marks = ", ".join("?" * len(columns))
    tables.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows)


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    with opened(path) as file:
        for batch in file.iter_batches(columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _entries(path: Path, column: str, fields: list[pa.Field]) -> Iterator[tuple[Any, ...]]:
    """The group's id and the fields; a field that the file lacks, because an older version wrote the file, is None."""
    for group_id, entries in _rows(path, ["group_id", column]):
        for entry in entries or ():
            yield (group_id, *(entry.get(field.name) for field in fields))
