"""The run's files after a rollback: sets checkpoints and batches aside, writes a line for readers of metrics. Blocking.

RUN/rollbacks.jsonl                        a line a rollback that all files agree with
RUN/checkpoints/rolled-back-N/step-K       a checkpoint that rollback N gave up
RUN/batches/rolled-back-N/step-K.groups    a batch likewise; kept until the run has come as far again
Everything here may be broken off and done again. Raises OSError.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from sluice.lineage import Rollback, is_given_up
from sluice.report.metrics import METRICS_FILE, ROLLBACK
from sluice.run_dir import checkpoints
from sluice.run_dir.batch_file import batch_files
from sluice.run_dir.durable import append_line, make_folder, sync
from sluice.run_dir.json_lines import JsonObject, json_lines, read_json_lines

log = structlog.get_logger(__name__)

ROLLBACKS_FILE = "rollbacks.jsonl"


def fault(to: int) -> str:
    """The `fault` in the ledger's rows of the groups given up."""
    return f"rolled back to version {to}"


def recorded(run_dir: Path) -> tuple[JsonObject, ...]:
    """The rollbacks that the files agree with, oldest first."""
    return read_json_lines(run_dir / ROLLBACKS_FILE).objects


def give_up(run_dir: Path, *, number: int, to: int) -> None:
    """Sets aside the checkpoints behind version `to` and the batches from step `to` on."""
    folder = run_dir / "checkpoints"
    _set_aside([checkpoints.path_of(folder, step) for step in checkpoints.steps(folder) if step > to], number)
    _set_aside([path for step, path in batch_files(run_dir) if step >= to], number)


def set_aside_late(run_dir: Path, history: Sequence[Rollback]) -> None:
    """Sets aside checkpoints that a learner finished after its history was given up."""
    folder = run_dir / "checkpoints"
    for step in list(checkpoints.steps(folder)):
        path = checkpoints.path_of(folder, step)
        try:
            lineage = checkpoints.lineage_of(path)
        except ValueError as error:
            log.warning("checkpoint_unreadable", reason=str(error))
            continue
        if is_given_up(lineage, step, history):
            _set_aside([path], len(history))


def record(run_dir: Path, account: Mapping[str, Any]) -> None:
    """Writes the rollback's lines to metrics.jsonl and rollbacks.jsonl; then all files agree with the rollback."""
    line = {"kind": ROLLBACK, **{name: account[name] for name in ("number", "to", "lineage", "reached", "time_s")}}
    known = (was or {} for was in json_lines(run_dir / METRICS_FILE))
    if not any(was.get("kind") == ROLLBACK and was.get("number") == account["number"] for was in known):
        append_line(run_dir / METRICS_FILE, line, synced=True)
    append_line(run_dir / ROLLBACKS_FILE, account, synced=True)  # a repeated rollback would set aside later files


def drop_set_aside(run_dir: Path, number: int) -> None:
    """Removes the files that rollback `number` has set aside."""
    for folder in ("checkpoints", "batches"):
        path = _aside(run_dir / folder, number)
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue
        except OSError as error:  # a full or read-only disk must not end a run for the sake of old files
            log.warning("set_aside_not_removed", path=str(path), reason=str(error))


def _set_aside(paths: Sequence[Path], number: int) -> None:
    for path in paths:
        folder = _aside(path.parent, number)
        make_folder(folder)
        target = folder / path.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)
    for parent in {path.parent for path in paths}:
        sync(_aside(parent, number))  # before the names that files had are gone
        sync(parent)


def _aside(folder: Path, number: int) -> Path:
    return folder / f"rolled-back-{number}"
