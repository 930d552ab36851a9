"""Prompts from JSON Lines and Parquet files, without duplicates.

Duplicates are removed because published sets carry duplicates by mistake (the hosted DAPO-Math-17k repeats its 17 thousand
prompts a hundred times), and "one epoch" must mean one epoch. The first of several equal prompts stays.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.coordinator.prompts.rows import COLUMNS, REQUIRED_COLUMNS, PromptRow, parse_row
from sluice.errors import DataError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".parquet")
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")
_BATCH_ROWS = 8192
"""Rows read at once: some 10 MB as Python objects for prompts of a thousand characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSource:
    """The rows of one or more files, in the order of the files."""

    rows: tuple[PromptRow, ...]
    duplicates: int
    """Rows left out because an earlier one has the same data source and prompt."""
    conflicts: int
    """Duplicates whose ground truth differs from that of the row that stayed: a flaw of the data set."""

    @property
    def size(self) -> int:
        """Number of rows that stayed."""
        return len(self.rows)

    def row(self, index: int) -> PromptRow:
        """Row `index`, 0-based."""
        return self.rows[index]

    def describe(self) -> dict[str, str | int]:
        """Counts for the log at start."""
        return {"rows": self.size, "duplicates_removed": self.duplicates, "conflicting_answers": self.conflicts}


def read_files(paths: Sequence[str]) -> FileSource:
    """Reads all files and removes duplicates across files. Raises DataError with file, row and what is wrong."""
    kept: dict[str, PromptRow] = {}
    read = conflicts = 0
    for path in paths:
        for row in _read_file(Path(os.path.expanduser(path))):
            read += 1
            first = kept.setdefault(row.prompt_id, row)
            conflicts += first.ground_truth != row.ground_truth
    if not kept:
        raise DataError(f"{', '.join(paths)}: no prompts; a data set must have at least one row")
    return FileSource(rows=tuple(kept.values()), duplicates=read - len(kept), conflicts=conflicts)


def _read_file(path: Path) -> Iterator[PromptRow]:
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path}: must end in {' or '.join(SUFFIXES)}, or be reasoning-gym:TASK or mixadd3:SPLIT, got {path.name!r}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    raw_rows = _json_lines(path) if path.suffix == ".jsonl" else _parquet(path)
    return (parse_row(raw, where=where) for where, raw in raw_rows)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields `FILE: line N` and the parsed line; empty lines are passed over."""
    # Bytes that are no UTF-8 become surrogates, so that the line with them can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                where = f"{path}: line {number}"
                if foreign := _FOREIGN_BYTE.search(line):
                    raise DataError(
                        f"{where}: must be UTF-8, got the byte 0x{ord(foreign[0]) - 0xDC00:02x} at character "
                        f"{foreign.start() + 1}; convert the file with iconv -t utf-8"
                    )
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}: not valid JSON: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields `FILE: row N` (0-based) and the row."""
    number = 0
    for batch in parquet_batches(path):
        for raw in _rows(batch, place=f"{path}: row", number=number):
            yield f"{path}: row {number}", raw
            number += 1


def _rows(batch: "pyarrow.RecordBatch", *, place: str, number: int) -> list[Any]:
    """The rows of a batch whose first row has that number. Raises DataError with the number of a row that is not UTF-8."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(len(batch)):
            try:
                batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise DataError(f"{place} {number + index}: must be UTF-8: {error}; write the file again") from error
        raise


def parquet_batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """The needed columns, with some thousand rows in memory at a time. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            missing = [name for name in REQUIRED_COLUMNS if name not in columns]
            if missing:
                raise DataError(f"{path}: must have columns {', '.join(missing)}, got {', '.join(columns)}")
            yield from file.iter_batches(_BATCH_ROWS, columns=[name for name in COLUMNS if name in columns])
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
