"""What a process writes: the log that a child gets, and the end of a log for an error message."""

import os
from pathlib import Path
from typing import BinaryIO

from sluice.errors import DiskFull, LaunchError
from sluice.run_dir.full_disk import BLOCK_BYTES, is_full, located
from sluice.run_dir.private import make_private_folder, open_private

TAIL_LINES = 15

_TAIL_BYTES = 64 << 10


def opened_log(name: str, path: Path) -> BinaryIO:
    """The log of a process, to append to. Raises DiskFull or LaunchError."""
    try:
        make_private_folder(path.parent)
        return open_private(path, "ab")
    except OSError as error:
        cause = located(error, path.parent, BLOCK_BYTES)
        kind = DiskFull if is_full(error) else LaunchError
        raise kind(f"{name}: its log {path} cannot be opened: {cause}") from cause


def former_of(path: Path) -> Path:
    """Where the older part of a log is."""
    return path.with_name(path.name + ".1")


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, for an error message; of its former part too where the log has just been turned over."""
    found = _last_lines(path, lines)
    if len(found) < lines:
        found = _last_lines(former_of(path), lines - len(found)) + found
    return "\n".join(found)


def last_words(name: str, path: Path | None) -> str:
    """A service's own last message (a line `name: ...` or `role: ...`, and what follows), else the end of its log."""
    lines = [] if path is None else tail(path).splitlines()
    role = name.rstrip("0123456789").rstrip("-")
    said = [number for number, line in enumerate(lines) if line.startswith((f"{name}: ", f"{role}: "))]
    return "\n".join(lines[said[-1] :]) if said else f"{name}: {path} ends:\n" + "\n".join(lines)


def _last_lines(path: Path, lines: int) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
