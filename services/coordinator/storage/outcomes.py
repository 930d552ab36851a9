"""The newest outcomes of groups in the ledger's files, for a sampler of prompts. Blocking.

A run's ledger may have 1e7 rows. The columns' statistics say where the rows begin that somebody still asks for, and only these
are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sluice.run_dir.ledger_parts import damage_skipped, first_row, open_parts, opened, part_paths

COLUMNS = (
    "prompt_id",
    "prompt_epoch",
    "prompt_row",
    "term",
    "oldest_version",
    "acc_mean",
    "ended_s",
)


def recent_outcomes(run_dir: Path, *, versions_since: int) -> Iterator[list[dict[str, Any]]]:
    """The COLUMNS of rows, from the first row group on that has such a version; some thousand at once."""
    for part in open_parts(run_dir, after=_begin(run_dir, versions_since)):
        with damage_skipped(part.path):
            for batch in part.batches(COLUMNS):
                yield batch.to_pylist()


def _begin(run_dir: Path, versions_since: int) -> int:
    """The number of the row to begin with: behind the newest row group that is too old as a whole."""
    for path in reversed(part_paths(run_dir)):
        with damage_skipped(path), opened(path) as file:
            end = first_row(path) + file.metadata.num_rows
            for group in reversed(range(file.metadata.num_row_groups)):
                columns = file.metadata.row_group(group)
                if _newest(columns, "oldest_version") < versions_since:
                    return end
                end -= columns.num_rows
    return 0


def _newest(columns: pq.RowGroupMetaData, name: str) -> float:
    """The largest value of a column of a row group; infinite where the file does not say."""
    found = (columns.column(place) for place in range(columns.num_columns))
    known = next((one.statistics for one in found if one.path_in_schema == name), None)
    return float("inf") if known is None or not known.has_min_max else known.max
