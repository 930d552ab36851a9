"""Checkpoint folders on disk: written aside, sealed by a manifest of sizes and hashes, renamed last, verified on use.

Only a complete checkpoint has a folder `step-K`; `verify` finds files that changed later. Knows nothing of tensors.
"""

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import structlog

from sluice.lineage import Rollback, is_given_up
from sluice.run_dir.checkpoints import MANIFEST, facts_of, lineage_of, path_of, steps, verify
from sluice.run_dir.durable import make_folder, name_synced, sync

log = structlog.get_logger(__name__)


def partial_of(directory: Path, step: int) -> Path:
    """The folder in which a checkpoint is written before it is complete."""
    return directory / f".step-{step}.partial"


def begin(partial: Path, *, needed_bytes: int = 0) -> None:
    """Makes an empty folder to write to and removes unfinished folders of killed processes.

    Raises OSError, also when the disk has no room for `needed_bytes`: a refusal is better than a full disk.
    """
    make_folder(partial.parent)
    for leftover in partial.parent.glob(".step-*.partial"):
        discard(leftover)
    free_bytes = shutil.disk_usage(partial.parent).free
    if free_bytes < needed_bytes:
        reason = f"a checkpoint needs about {needed_bytes} bytes, the disk has {free_bytes} free"
        raise OSError(errno.ENOSPC, reason, str(partial.parent))
    partial.mkdir()


def discard(partial: Path) -> None:
    """Removes an unfinished checkpoint, as far as the disk permits."""
    shutil.rmtree(partial, ignore_errors=True)


def seal(partial: Path, step: int) -> Path:
    """Hashes and syncs every file, then gives the folder its final name; returns the new path. Raises OSError."""
    files = sorted(partial.iterdir())
    for path in files:
        sync(path)
    facts = {path.name: facts_of(path) for path in files}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps(facts, indent=1))
    sync(manifest)
    sync(partial)
    final = path_of(partial.parent, step)
    shutil.rmtree(final, ignore_errors=True)  # the same step, trained again after a restore
    name_synced(partial, final)
    return final


def newest_that_verifies(
    directory: Path, rollbacks: Sequence[Rollback] = (), *, up_to: int | None = None
) -> Path | None:
    """The checkpoint to start from, not later than step `up_to`.

    Checkpoints that do not verify, or that one of the run's `rollbacks` has given up, are skipped and logged.
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
    """Raises ValueError for a checkpoint of a version that a rollback has given up; a late learner may write one."""
    if rollbacks and is_given_up(lineage_of(path), step, rollbacks):
        raise ValueError(f"{path}: was rolled back, the run goes on from version {rollbacks[-1].to}")


def retain(directory: Path, *, newest: int, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints up to `newest`, the checkpoint just completed; logs failed removals.

    Checkpoints later than `newest` do not count: the run started from an earlier one, because they do not verify or
    `learner.resume` named another.
    """
    for step in sorted((step for step in steps(directory) if step <= newest), reverse=True)[keep:]:
        try:
            shutil.rmtree(path_of(directory, step))
        except OSError as error:
            log.warning("checkpoint_not_removed", path=str(path_of(directory, step)), reason=str(error))
