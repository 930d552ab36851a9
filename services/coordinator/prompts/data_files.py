"""Prompts from JSON Lines and Parquet files, without duplicates.

Duplicates are removed because published sets carry duplicates by mistake (the hosted DAPO-Math-17k repeats its 17 thousand
prompts a hundred times), and "one epoch" must mean one epoch. The first of several equal prompts stays.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from services.coordinator.prompts.rows import COLUMNS, MEDIA, REQUIRED_COLUMNS, PromptRow, parse_row
from sluice.errors import DataError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SUFFIXES = (".jsonl", ".parquet")
_FOREIGN_BYTE = re.compile("[\udc80-\udcff]")
_BATCH_ROWS = 8192
"""Rows read at once: some 10 MB as Python objects for prompts of a thousand characters."""
_BATCH_OF_MEDIA = 16
"""Rows of images read at once, which may have megabytes each."""
_OTHER_CONTENTS = {
    b"\x1f\x8b": "compressed with gzip; unpack it with gunzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it with unzstd",
    b"PK\x03\x04": "a zip archive; unpack it with unzip",
    b"version https://git-lfs": "a pointer of Git LFS, not the data; fetch the data with git lfs pull",
    b"PAR1": "a Parquet file; name it .parquet",
}
"""How files begin that are something else than their name says."""


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
        for row in _read_file(path):
            read += 1
            first = kept.setdefault(row.prompt_id, row)
            conflicts += first.ground_truth != row.ground_truth
    if not kept:
        raise DataError(f"{', '.join(paths)}: no prompts; a data set must have at least one row")
    return FileSource(rows=tuple(kept.values()), duplicates=read - len(kept), conflicts=conflicts)


def _read_file(name: str) -> Iterator[PromptRow]:
    path = Path(os.path.expanduser(name))
    with _errors_named(name):
        _check_file(name, path)
        raw_rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _parquet(path)
        for where, raw in raw_rows:
            yield parse_row(raw, where=where)


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Raises DataError where the system cannot read a file, or the file is damaged."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def _check_file(name: str, path: Path) -> None:
    """Raises DataError for a name that is no file of ours, and for a file whose first bytes are those of another kind."""
    if not name.strip():
        raise DataError(f"data: the name of a file must not be empty, got {name!r}")
    if "://" in name:
        raise DataError(f"{name}: must be a file of this machine, not an address; copy the file here")
    if path.is_dir():
        raise DataError(f"{name}: must be a file, is a folder; name the files in it")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{name}: must end in {' or '.join(SUFFIXES)}, or be reasoning-gym:TASK, mixadd3:SPLIT or products:SPLIT, "
            f"got {path.name!r}"
        )
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, ValueError):  # ValueError: a zero byte in the name
        fix = "; patterns are not expanded, name every file" if any(sign in name for sign in "*?[") else ""
        raise DataError(f"{name}: no such file{fix}") from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{name}: must be a regular file, is none")
    with path.open("rb") as file:
        begin = file.read(max(map(len, _OTHER_CONTENTS)))
    found = next((kind for first, kind in _OTHER_CONTENTS.items() if begin.startswith(first)), None)
    if found is not None and not (begin.startswith(b"PAR1") and path.suffix.lower() == ".parquet"):
        raise DataError(f"{name}: is {found}")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields `FILE: line N` and the parsed line; empty lines are passed over."""
    # Bytes that are no UTF-8 become surrogates, so that the line with them can be named.
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, written in enumerate(lines, start=1):
            line = written.removeprefix("\ufeff")  # files that were put together have the mark inside, too
            if line.strip():
                where = f"{path}: line {number}"
                if foreign := _FOREIGN_BYTE.search(line):
                    raise DataError(
                        f"{where}: must be UTF-8, got the byte 0x{ord(foreign[0]) - 0xDC00:02x} at character "
                        f"{foreign.start() + 1}; convert the file with iconv -t utf-8"
                    )
                yield where, _object(line, where=where)


def _object(line: str, *, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON: {error.msg} at character {error.pos + 1}; a line holds one whole object"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields `FILE: row N` (0-based) and the row."""
    number = 0
    _refuse_media(path)
    for batch in parquet_batches(path):
        narrow = _narrow_float(batch)
        for raw in _rows(batch, place=f"{path}: row", number=number):
            if narrow is not None and raw["reward_model"] is not None:
                raw["reward_model"]["ground_truth"] = _shortest(raw["reward_model"]["ground_truth"], narrow)
            yield f"{path}: row {number}", raw
            number += 1


def _narrow_float(batch: "pyarrow.RecordBatch") -> type[np.floating[Any]] | None:
    """numpy's type of a ground truth of 16 or 32 bits; None for one of another type."""
    import pyarrow

    kind = batch.schema.field("reward_model").type
    place = kind.get_field_index("ground_truth") if pyarrow.types.is_struct(kind) else -1
    truth = kind.field(place).type if place >= 0 else None
    return {pyarrow.float16(): np.float16, pyarrow.float32(): np.float32}.get(truth)


def _shortest(value: float | None, narrow: type[np.floating[Any]]) -> float | None:
    """The number with the fewest digits that is `value` in its own type: 0.1 for the 32 bits of 0.1."""
    return None if value is None else float(str(narrow(value)))


def _refuse_media(path: Path) -> None:
    """Raises DataError for a file that has images, videos or sounds to its prompts. Reads up to the first row with one."""
    with _opened(path) as file:
        for name in set(MEDIA) & set(file.schema_arrow.names):
            number = 0
            for batch in file.iter_batches(_BATCH_OF_MEDIA, columns=[name]):
                for value in batch.column(0):
                    if value.as_py():
                        raise DataError(f"{path}: row {number}: {name}: must be empty, models are text only")
                    number += 1


def _rows(batch: "pyarrow.RecordBatch", *, place: str, number: int) -> list[Any]:
    """The rows of a batch whose first row has that number. Raises DataError with the number of a row that cannot be read."""
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError):  # text that is not UTF-8, a mapping with a key twice, times in nanoseconds
        for index in range(len(batch)):
            try:
                batch.slice(index, 1).to_pylist(maps_as_pydicts="strict")
            except UnicodeDecodeError as error:
                raise DataError(f"{place} {number + index}: must be UTF-8: {error}; write the file again") from error
            except (ValueError, KeyError) as error:
                raise DataError(f"{place} {number + index}: {_why_unreadable(error)}") from error
        raise


def _why_unreadable(error: Exception) -> str:
    """Why Python has no such value: pyarrow says neither by the type of its errors."""
    if "anosecond" in str(error):
        return f"must hold values that Python has: {str(error).partition('. ')[0]}; write times in microseconds"
    return f"a mapping has a key twice: {error}"


def parquet_batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """The needed columns, with some thousand rows in memory at a time. Raises DataError."""
    with _opened(path) as file:
        columns = file.schema_arrow.names
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise DataError(f"{path}: must have columns {', '.join(missing)}, got {', '.join(columns)}")
        if twice := [name for name in COLUMNS if columns.count(name) > 1]:
            raise DataError(f"{path}: must have each column once, got {twice[0]} {columns.count(twice[0])} times")
        yield from file.iter_batches(_BATCH_ROWS, columns=[name for name in COLUMNS if name in columns])


@contextmanager
def _opened(path: Path) -> "Iterator[pyarrow.parquet.ParquetFile]":
    """The file, to be read within. Raises DataError for one that is damaged or no Parquet."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
