"""Writes the files of RUN/ledger. Every method is blocking, may be broken off, and does nothing when it is done again.

New rows fill the newest file. Once there are MERGED_PARTS files with few rows behind one another, they become one file, so
that a run has a file for MERGED_ROWS groups; nothing reads or writes more than a row group at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.run_dir.durable import sync, write_synced
from sluice.run_dir.ledger_parts import damage_skipped, first_row, open_parts, opened, part_path, part_paths
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA

ROWS_A_GROUP = 5_000
"""Rows of a row group at least, where there are so many."""
MERGED_PARTS = 20
MERGED_ROWS = 100_000
"""Rows of a merged file. Chosen: a rollback rewrites the newest of these in seconds, and 1e7 groups have 100."""


def ledger_rows(run_dir: Path) -> int:
    """Number of the rows in files: where the newest file begins, and its rows."""
    newest = max(part_paths(run_dir), default=None)
    if newest is None:
        return 0
    with damage_skipped(newest), opened(newest) as file:
        return first_row(newest) + file.metadata.num_rows
    return first_row(newest)


def write_rows(run_dir: Path, rows: Sequence[Mapping[str, Any]], *, after: int, most: int) -> None:
    """Writes the rows behind the first `after` rows.

    They go to the newest file as long as it has no more than `most` rows, so that files are neither many nor large, and to a
    new one otherwise.
    """
    table, path = pa.Table.from_pylist([dict(row) for row in rows], schema=LEDGER_SCHEMA), part_path(run_dir, after)
    newest = max(part_paths(run_dir), default=None)
    if newest is not None and first_row(newest) < after and after - first_row(newest) + len(rows) <= most:
        with damage_skipped(newest), opened(newest) as file:
            table = pa.concat_tables([_as_now(file.read().slice(0, after - first_row(newest))), table])
            path = newest
    write_synced(path, _parquet([table]))


def merge(run_dir: Path) -> None:
    """Makes one file of many small ones where there are enough of these, or ends a merge that a kill broke off."""
    small = _newest_small_ones(run_dir)
    together: list[tuple[Path, int]] = []
    for path, rows in small:
        gap = together and first_row(path) != first_row(together[-1][0]) + together[-1][1]
        if gap or sum(known for _, known in together) + rows > MERGED_ROWS:
            break
        together.append((path, rows))
    if len(small) < MERGED_PARTS or len(together) < 2:
        return
    paths = [path for path, _ in together]
    write_synced(paths[0], _parquet(_tables(paths)))
    _remove(paths[1:])


def _newest_small_ones(run_dir: Path) -> list[tuple[Path, int]]:
    """The files before the newest one, back to a merged or an unreadable one, and their rows; oldest first.

    Removes files whose rows are all in the merged file before them.
    """
    small: list[tuple[Path, int]] = []
    for path in reversed(part_paths(run_dir)[:-1]):
        try:
            rows = pq.read_metadata(path).num_rows
        except (pa.ArrowException, OSError):
            break
        covered = [later for later, _ in small if first_row(later) < first_row(path) + rows]
        _remove(covered)
        small = [(later, known) for later, known in small if later not in covered]
        if rows + ROWS_A_GROUP > MERGED_ROWS:
            break
        small.append((path, rows))
    return small[::-1]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync(paths[0].parent)


def mark_rolled_back(run_dir: Path, *, since: int, fault: str) -> None:
    """Counts groups trained in a step from `since` on as `rollback`, in every file; replaces a file as a whole."""
    for path in part_paths(run_dir):
        with damage_skipped(path):
            if any(_given_up(table, since).any() for table in _tables([path], columns=["term", "step"])):
                write_synced(path, _parquet(_marked(table, since, fault) for table in _tables([path], as_now=False)))


def count_trained(run_dir: Path, *, since: int) -> tuple[int, int, int]:
    """How many rows are in files; of the groups trained in a step from `since` on, how many, and their tokens."""
    rows = groups = tokens = 0
    for part in open_parts(run_dir):
        with damage_skipped(part.path):
            for batch in part.batches(["term", "step", "tokens"]):
                rows += batch.num_rows
                given_up = _given_up(batch, since)
                groups += int(given_up.sum())
                tokens += int(np.nansum(np.asarray(batch.column("tokens"))[given_up]))
    return rows, groups, tokens


def _given_up(rows: pa.Table | pa.RecordBatch, since: int) -> np.ndarray:
    """[N] bool: the rows that a rollback to `since` gives up."""
    return (np.asarray(rows.column("term")) == "trained") & (np.asarray(rows.column("step")) >= since)


def _marked(table: pa.Table, since: int, fault: str) -> pa.Table:
    given_up = _given_up(table, since)
    for name, value in (("term", "rollback"), ("fault", fault)):
        place = table.schema.get_field_index(name)
        if place >= 0:  # an older file may have fewer columns
            was = table.column(place).to_pylist()
            values = [value if gone else old for gone, old in zip(given_up, was, strict=True)]
            table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
    return table


def _tables(paths: Iterable[Path], *, columns: list[str] | None = None, as_now: bool = True) -> Iterator[pa.Table]:
    """The rows of the files, ROWS_A_GROUP or more at once. Raises ArrowException, OSError."""
    waiting: list[pa.Table] = []
    for path in paths:
        with opened(path) as file:
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                waiting.append(_as_now(table) if as_now and columns is None else table)
                if sum(len(table) for table in waiting) >= ROWS_A_GROUP:
                    yield pa.concat_tables(waiting)
                    waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _as_now(table: pa.Table) -> pa.Table:
    """The table with every column of today's ledger: an older file may have fewer."""
    if table.schema.equals(LEDGER_SCHEMA):
        return table
    return pa.Table.from_pylist(table.to_pylist(), schema=LEDGER_SCHEMA)


def _parquet(tables: Iterable[pa.Table]) -> Iterator[bytes]:
    """A file of these tables, a row group each, piece by piece."""
    sink, writer = _Sink(), None
    for table in tables:
        writer = writer or pq.ParquetWriter(sink, table.schema, write_page_checksum=True)
        writer.write_table(table)
        yield sink.taken()
    assert writer is not None, "a file of the ledger has a row"
    writer.close()
    yield sink.taken()


class _Sink:
    """A file to write to, whose bytes are taken away as they come."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def write(self, piece: Any) -> int:
        """Keeps the bytes until they are taken."""
        self._pieces.append(bytes(piece))
        self._position += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        """How many bytes were written."""
        return self._position

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> bytes:
        """The bytes since the last call."""
        piece, self._pieces = b"".join(self._pieces), []
        return piece
