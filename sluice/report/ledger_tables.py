"""RUN/ledger/*.parquet as rows and as SQL tables, with every group that has ended. Columns: docs/ledger.md.

`groups` has the plain columns. The two columns that hold lists become the tables `attempts` and `samples`, whose rows
carry the group's id. A live run writes its rows every 20 steps and with every checkpoint.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sluice.errors import InvalidRequest, NotFound
from sluice.run_dir.ledger_parts import OpenPart, damage_skipped, open_parts, part_paths
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA

LISTS = {"attempts": "attempts", "samples": "completions"}
"""Table -> the column of the files that holds the table's rows."""

_AFFINITIES = ((pa.types.is_integer, "INTEGER"), (pa.types.is_floating, "REAL"))


def ledger_files(run_dir: Path) -> list[Path]:
    """The files of a run's ledger, oldest rows first. Raises NotFound."""
    if not run_dir.is_dir():
        raise NotFound(f"{run_dir}: no such run directory")
    files = part_paths(run_dir)
    if not files:
        raise NotFound(
            f"{run_dir}: has no ledger/*.parquet yet; they come every 20 steps, with checkpoints and at the end"
        )
    return files


def find_row(run_dir: Path, wanted: str) -> dict[str, Any] | None:
    """The row of the group with this id, or with this number in the order of admission; None without such a row."""
    is_number = wanted.isdecimal() and len(wanted) < 19
    column, value = ("admission", int(wanted)) if is_number else ("group_id", wanted)
    for part in open_parts(run_dir):
        with damage_skipped(part.path):
            for group in range(part.file.metadata.num_row_groups):
                if not _may_have(part.file, group, column, value):
                    continue
                place = part.file.read_row_group(group, columns=[column]).column(0).index(value).as_py()
                if place >= 0:
                    return part.file.read_row_group(group).slice(place, 1).to_pylist()[0]
    return None


def _may_have(file: pq.ParquetFile, group: int, column: str, value: object) -> bool:
    """Whether the file's statistics leave open that the value is in a row group, which is large to read."""
    columns = file.metadata.row_group(group)
    found = [columns.column(place) for place in range(columns.num_columns)]
    known = next((one.statistics for one in found if one.path_in_schema == column), None)
    return known is None or not known.has_min_max or known.min <= value <= known.max


def nearest_ids(run_dir: Path, wanted: str, *, count: int = 3) -> list[str]:
    """Ids of the ended groups with the admission numbers closest to the number at the end of `wanted`, closest first."""
    digits = wanted[len(wanted.rstrip("0123456789")) :]
    number = int(digits[-18:] or "0")
    with contextlib.closing(open_tables(run_dir)) as tables:
        closest = "SELECT group_id FROM groups ORDER BY abs(admission - ?), admission LIMIT ?"
        return [name for (name,) in tables.execute(closest, (number, count))]


def open_tables(run_dir: Path, *, lists: bool = False) -> sqlite3.Connection:
    """A read-only database of its own, which spills to disk: `groups`, with `lists` also `attempts` and `samples`.

    Raises NotFound.
    """
    ledger_files(run_dir)
    tables = sqlite3.connect("")
    plain = [field for field in LEDGER_SCHEMA if not pa.types.is_list(field.type)]
    _create(tables, "groups", plain)
    for part in open_parts(run_dir):
        names = part.file.schema_arrow.names  # an older file may have fewer columns
        columns = [field.name for field in plain if field.name in names]
        with damage_skipped(part.path):
            _insert(tables, "groups", columns, _rows(part, columns))
    for name, column in LISTS.items() if lists else ():
        fields = [pa.field("group_id", pa.string()), *LEDGER_SCHEMA.field(column).type.value_type]
        _create(tables, name, fields)
        for part in open_parts(run_dir):
            if column in part.file.schema_arrow.names:
                with damage_skipped(part.path):
                    _insert(tables, name, [field.name for field in fields], _entries(part, column, fields[1:]))
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


def _insert(
    tables: sqlite3.Connection, name: str, columns: list[str], batches: Iterator[list[tuple[Any, ...]]]
) -> None:
    """Inserts all rows of a file, or none of a file that turns out to be damaged."""
    marks = ", ".join("?" * len(columns))
    tables.execute("SAVEPOINT file")
    try:
        for rows in batches:
            tables.executemany(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({marks})", rows)
    except (pa.ArrowException, OSError):
        tables.execute("ROLLBACK TO file")
        raise
    finally:
        tables.execute("RELEASE file")


def _rows(part: OpenPart, columns: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    for batch in part.batches(columns):
        yield list(zip(*(batch.column(name).to_pylist() for name in columns), strict=True))


def _entries(part: OpenPart, column: str, fields: list[pa.Field]) -> Iterator[list[tuple[Any, ...]]]:
    """The group's id and the fields; a field that the file lacks, because an older version wrote the file, is None."""
    for rows in _rows(part, ["group_id", column]):
        yield [
            (group_id, *(entry.get(field.name) for field in fields))
            for group_id, entries in rows
            for entry in entries or ()
        ]
