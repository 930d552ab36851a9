"""A Parquet file with verl's columns, written again with every prompt once.

Two rows have the same prompt by a run's own rule: equal data source and prompt (`PromptRow.prompt_id`). The first row of a
prompt stays, in the order of the file and with the bytes of its columns. In memory are a few thousand rows at a time, and
hash and answer of every distinct prompt.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from services.coordinator.prompts.data_files import parquet_batches
from services.coordinator.prompts.rows import parse_row
from sluice.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """The counts of a file's rows."""

    rows: int
    prompts: int
    """Distinct prompts: the rows written."""
    conflicts: int
    """Copies whose ground truth differs from that of the row that stayed."""


def write_distinct(source: Path, target: Path) -> Counts:
    """Writes `target` whole or not at all. Raises DataError with the file, the row and what is wrong."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    batches = parquet_batches(source)
    first_batch = next(batches, None)
    if first_batch is None:
        raise DataError(f"{source}: no prompts; a data set must have at least one row")
    answers: dict[str, str] = {}
    rows = conflicts = 0
    with _whole_or_not(target) as partial, ParquetWriter(partial, first_batch.schema) as writer:
        for batch in chain([first_batch], batches):
            is_first: list[bool] = []
            for raw in batch.to_pylist():
                row = parse_row(raw, where=f"{source}: row {rows}")
                is_first.append(row.prompt_id not in answers)
                conflicts += answers.setdefault(row.prompt_id, row.ground_truth) != row.ground_truth
                rows += 1
            if any(is_first):
                writer.write_batch(batch.filter(pyarrow.array(is_first)))
    return Counts(rows=rows, prompts=len(answers), conflicts=conflicts)


@contextmanager
def _whole_or_not(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
