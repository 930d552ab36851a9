"""Checkpoint folders on disk: written aside, sealed by a manifest of sizes and hashes, renamed last, verified on use.

A folder `step-K` exists only when it is complete; a file that changed since is found out. Knows nothing of tensors.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog
from blake3 import blake3

log = structlog.get_logger(__name__)

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")


def path_of(directory: Path, step: int) -> Path:
    """Where the complete checkpoint `step` is."""
    return directory / f"step-{step}"


def step_of(path: Path) -> int:
    """The step of a complete checkpoint, by its folder's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


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
    facts = {path.name: _facts(path, sync=True) for path in sorted(partial.iterdir())}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps(facts, indent=1))
    _sync(manifest)
    _sync(partial)
    final = path_of(partial.parent, step)
    shutil.rmtree(final, ignore_errors=True)  # the same step, trained again after a restore
    os.replace(partial, final)
    _sync(final.parent)
    return final


def verify(path: Path) -> None:
    """Raises ValueError, saying what, unless every file is as it was when the folder was sealed."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable {MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or not manifest:
        raise ValueError(f"{path}: {MANIFEST} names no file")
    for name, facts in manifest.items():
        if not (path / name).is_file():
            raise ValueError(f"{path}: {name} is missing")
        if _facts(path / name) != facts:
            raise ValueError(f"{path}: {name} is not what was written (size or hash differs)")


def newest_that_verifies(directory: Path, *, up_to: int | None = None) -> Path | None:
    """The checkpoint to start from, not later than step `up_to`; those that do not verify are skipped and logged."""
    for step in sorted((step for step in steps(directory) if up_to is None or step <= up_to), reverse=True):
        path = path_of(directory, step)
        try:
            verify(path)
        except ValueError as error:
            log.warning("checkpoint_skipped", path=str(path), reason=str(error))
            continue
        return path
    return None


def retain(directory: Path, *, newest: int, keep: int) -> None:
    """Removes all but the newest `keep` up to `newest`, which has just been completed; logs what cannot be removed.

    Later ones were passed over at the start (they do not verify, or another was asked for): they do not count.
    """
    for step in sorted((step for step in steps(directory) if step <= newest), reverse=True)[keep:]:
        try:
            shutil.rmtree(path_of(directory, step))
        except OSError as error:
            log.warning("checkpoint_not_removed", path=str(path_of(directory, step)), reason=str(error))


def steps(directory: Path) -> Iterator[int]:
    """The steps there is a checkpoint of, in no order."""
    for path in directory.glob("step-*"):
        if match := _NAME.fullmatch(path.name):
            yield int(match[1])


def _facts(path: Path, *, sync: bool = False) -> dict[str, int | str]:
    if sync:
        _sync(path)
    return {"size_bytes": path.stat().st_size, "blake3": blake3().update_mmap(path).hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
