"""Files and folders that their owner alone can read: prompts, completions and logs are nobody else's business.

Only what is made is private; what is there already keeps its permissions, because its owner may have shared it.
"""

import os
from pathlib import Path
from typing import BinaryIO, cast

UMASK = 0o077
"""For a child process that makes private files."""

_FILE, _FOLDER = 0o600, 0o700


def open_private(path: Path, mode: str, *, buffering: int = -1) -> BinaryIO:
    """Opens a file in a binary mode; one that is made is private. Raises OSError."""
    return cast(BinaryIO, open(path, mode, buffering, opener=lambda name, flags: os.open(name, flags, _FILE)))


def make_private_folder(path: Path) -> None:
    """Makes the folder unless it is there, and its parents with the usual permissions. Raises OSError."""
    path.mkdir(mode=_FOLDER, parents=True, exist_ok=True)
