"""Checkpoint folders as every service knows them: `RUN/checkpoints/step-K` holds version K, complete and verifiable.

services/learner/checkpoint writes these folders. This module knows nothing of tensors.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

MANIFEST = "manifest.json"
"""Sizes and hashes of all other files."""

STATE = "state.json"
"""The file with the state beside the tensors: `step`, `lineage` and more."""

_NAME = re.compile(r"step-(\d+)")


def path_of(directory: Path, step: int) -> Path:
    """The folder of the complete checkpoint `step`."""
    return directory / f"step-{step}"


def step_of(path: Path) -> int:
    """The step of a complete checkpoint, read from the folder's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def steps(directory: Path) -> Iterator[int]:
    """The steps of all checkpoints, in no order."""
    for path in directory.glob("step-*"):
        if match := _NAME.fullmatch(path.name):
            yield int(match[1])


def verify(path: Path) -> None:
    """Raises ValueError with the difference unless every file is as it was when the folder was sealed."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no readable {MANIFEST}: {error}") from error
    if not isinstance(manifest, dict) or not manifest:
        raise ValueError(f"{path}: {MANIFEST} names no file")
    for name, facts in manifest.items():
        if not (path / name).is_file():
            raise ValueError(f"{path}: {name} is missing")
        if facts_of(path / name) != facts:
            raise ValueError(f"{path}: {name} is not what was written (size or hash differs)")


def facts_of(path: Path) -> dict[str, int | str]:
    """Size and hash of a file, as the manifest states them."""
    return {"size_bytes": path.stat().st_size, "blake3": blake3().update_mmap(path).hexdigest()}


def lineage_of(path: Path) -> str:
    """The lineage of the version in a checkpoint. Raises ValueError when the state cannot be read."""
    try:
        return str(json.loads((path / STATE).read_text(encoding="utf-8"))["lineage"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no readable {STATE}: {error}") from error
