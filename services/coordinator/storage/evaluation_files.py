"""RUN/evaluations: a Parquet file an evaluation, with a row for every prompt. Blocking.

A file is named after lineage, version and set, which also identify an evaluation's line in metrics.jsonl: a later
evaluation of the same set and version takes the place of the former. The files have a bound each: KEPT_EVALUATIONS in
all, and `run.file_max_bytes` together; the oldest go that are not the first of their set.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.progress import KEPT_EVALUATIONS, later_ones
from sluice.run_dir.durable import write_synced
from sluice.run_dir.evaluation_schema import EVALUATION_SCHEMA, EVALUATIONS_FOLDER
from sluice.run_dir.private import make_private_folder

_NAME = re.compile(r"(?P<lineage>[a-z]+)-(?P<number>[0-9]{6,})(?:-(?P<set>[a-z0-9_]+))?\.parquet")


def keep(run_dir: Path, result: EvaluationResult, rows: Sequence[Mapping[str, Any]], *, most_bytes: int) -> Path:
    """Writes an evaluation's file and removes what is too old; returns the file's path. Raises OSError."""
    folder = run_dir / EVALUATIONS_FOLDER
    make_private_folder(folder)
    version = result.version
    path = folder / f"{version.lineage}-{version.number:06d}{f'-{result.set}' if result.set else ''}.parquet"
    same = {"set": result.set, "lineage": version.lineage, "version": version.number}
    table = pa.Table.from_pylist([same | dict(row) for row in rows], schema=EVALUATION_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_synced(path, [sink.getvalue().to_pybytes()])
    _remove_old(folder, newest=path, most_bytes=most_bytes)
    return path


def _remove_old(folder: Path, *, newest: Path, most_bytes: int) -> None:
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda entry: (len(entry[0]["lineage"]), entry[0]["lineage"], int(entry[0]["number"])))
    sizes = [path.stat().st_size for _, path in found]
    files, size_bytes = len(found), sum(sizes)
    for place in later_ones([match["set"] or "" for match, _ in found]):
        if files <= KEPT_EVALUATIONS and size_bytes <= most_bytes:
            return
        if found[place][1] != newest:
            found[place][1].unlink(missing_ok=True)
            files, size_bytes = files - 1, size_bytes - sizes[place]
