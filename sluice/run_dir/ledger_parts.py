"""RUN/ledger/part-N.parquet: the rows of ended groups, in files named after the number of rows before them.

Files are merged now and then (services/coordinator/storage/ledger_writer.py): the first of them then has the rows of all, and
the others go. Whoever reads meanwhile finds each row once: what an earlier file had is left out of a later one, and a file that
has gone since the folder was listed has the folder listed again.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sluice.run_dir.full_disk import is_full


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenPart:
    """One file, open."""

    path: Path
    file: pq.ParquetFile
    known: int
    """Rows at the beginning that the reader had from an earlier file."""

    @property
    def rows(self) -> int:
        """Rows that the reader has not had."""
        return self.file.metadata.num_rows - self.known

    def batches(self, columns: Sequence[str] | None = None, *, most: int = 5_000) -> Iterator[pa.RecordBatch]:
        """The rows that the reader has not had, at most `most` at once. A column that the file lacks is left out.

        Raises ArrowException, OSError.
        """
        skip = self.known
        for group in range(self.file.metadata.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            if skip >= rows:
                skip -= rows
                continue
            table = self.file.read_row_group(group, columns=None if columns is None else list(columns)).slice(skip)
            skip = 0
            yield from table.to_batches(max_chunksize=most)


def part_path(run_dir: Path, first: int) -> Path:
    """The file that begins with row `first`."""
    return run_dir / "ledger" / f"part-{first:012d}.parquet"


def part_paths(run_dir: Path) -> list[Path]:
    """Every file, oldest rows first."""
    return sorted((run_dir / "ledger").glob("part-*.parquet"))


def first_row(path: Path) -> int:
    """The number of rows in the files before this one, which is the file's name."""
    return int(path.stem.removeprefix("part-"))


@contextlib.contextmanager
def damage_skipped(path: Path) -> Iterator[None]:
    """Ends the block with a line on stderr where a file of the ledger cannot be read; the other files can."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if is_full(error):
            raise  # of a file that is written in the block
        sys.stderr.write(f"warning: {path} cannot be read, its groups are missing here: {error}\n")


def opened(path: Path) -> pq.ParquetFile:
    """A file of the ledger, whose pages are compared with their checksums. Raises ArrowException, OSError."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def open_parts(run_dir: Path, *, after: int = 0) -> Iterator[OpenPart]:
    """The files with rows behind the first `after` rows, oldest first. A file that cannot be opened is named and left out.

    Pages are read later: wrap the reading in `damage_skipped`.
    """
    covered, listing, gone = after, _from(run_dir, after), None
    while listing:
        path, file = listing.pop(0), None
        if not path.exists() and path != gone:
            gone = path
            listing = _from(run_dir, covered)
            continue
        with damage_skipped(path):
            file = opened(path)
        if file is None:
            continue
        with file:
            first, end = first_row(path), first_row(path) + file.metadata.num_rows
            if end > covered:
                yield OpenPart(path=path, file=file, known=max(0, covered - first))
                covered = end


def _from(run_dir: Path, row: int) -> list[Path]:
    """The files from the newest on that begins at or before `row`, oldest rows first."""
    paths = part_paths(run_dir)
    holder = max((path for path in paths if first_row(path) <= row), default=part_path(run_dir, 0))
    return [path for path in paths if path >= holder]
