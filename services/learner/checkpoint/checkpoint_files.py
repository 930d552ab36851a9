"""Checkpoint folders on disk: written aside, sealed by a manifest of sizes and hashes, renamed last, verified on use.

A folder `step-K` exists only when it is complete; a file that changed since is found out. Knows nothing of tensors.
"""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from sluice.lineage import Rollback, is_given_up
from sluice.run_dir.checkpoints import MANIFEST, facts_of, lineage_of, path_of, steps, verify

log = structlog.get_logger(__name__)


def partial_of(directory: Path, step: int) -> Path:
    """Where it is written to before it is complete."""
    return directory / f".step-{step}.partial"


def begin(partial: Path, *, needed_bytes: int = 0) -> None:
    """An empty folder to write to; what killed processes left beside it is removed.

    Raises OSError, also when the disk has no room for `needed_bytes`: better to refuse than to fill the disk of others.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    for leftover in partial.parent.glob(".step-*.partial"):
        discard(leftover)
    free_bytes = shutil.disk_usage(partial.parent).free
    if free_bytes < needed_bytes:
        reason = f"a checkpoint needs about {needed_bytes} bytes, the disk has {free_bytes} free"
        raise OSError(errno.ENOSPC, reason, str(partial.parent))
    partial.mkdir()


def discard(partial: Path) -> None:
    """Gives the room of an unfinished checkpoint back, as far as the disk lets it."""
    shutil.rmtree(partial, ignore_errors=True)


def seal(partial: Path, step: int) -> Path:
    """Hashes and syncs every file, then gives the folder its name; returns the new path. Raises OSError."""
    files = sorted(partial.iterdir())
    for path in files:
        _sync(path)
    facts = {path.name: facts_of(path) for path in files}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps(facts, indent=1))
    _sync(manifest)
    _sync(partial)
    final = path_of(partial.parent, step)
    shutil.rmtree(final, ignore_errors=True)  # the same step, trained again after a restore
    os.replace(partial, final)
    _sync(final.parent)
    return final


def newest_that_verifies(
    directory: Path, rollbacks: Sequence[Rollback] = (), *, up_to: int | None = None
) -> Path | None:
    """The checkpoint to start from, not later than step `up_to`.

    Those that do not verify, or were given up by one of the run's `rollbacks`, are skipped and logged.
    """
    for step in sorted((step for step in steps(directory) if up_to is None or step <= up_to), reverse=True):
        path = path_of(directory, step)
        try:
            verify(path)
            refuse_given_up(path, step, rollbacks)
        except ValueError as error:
            log.warning("checkpoint_skipped", path=str(path), reason=str(error))
            continue
        return path
    return None


def refuse_given_up(path: Path, step: int, rollbacks: Sequence[Rollback]) -> None:
    """Raises ValueError for a checkpoint of a history that was rolled back, written by a learner that had not heard."""
    if rollbacks and is_given_up(lineage_of(path), step, rollbacks):
        raise ValueError(f"{path}: was rolled back, the run goes on from version {rollbacks[-1].to}")


def retain(directory: Path, *, newest: int, keep: int) -> None:
    """Removes all but the newest `keep` up to `newest`, which has just been completed; logs what cannot be removed.

    Later ones were passed over at the start (they do not verify, or another was asked for): they do not count.
    """
    for step in sorted((step for step in steps(directory) if step <= newest), reverse=True)[keep:]:
        try:
            shutil.rmtree(path_of(directory, step))
        except OSError as error:
            log.warning("checkpoint_not_removed", path=str(path_of(directory, step)), reason=str(error))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
