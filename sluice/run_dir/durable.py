"""Writes that outlive a power failure: the file is on disk, and its name in the folder, before anything points to it.

A rename alone keeps its place in the order of writes on no file system by promise: after a power failure the new name may
hold an empty file, or be gone. So the bytes are synced, then the file gets its name, then the folder is synced. New files and
folders are private (private.py).
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sluice.run_dir.private import make_private_folder, open_private
from sluice.strict_json import finite


def write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file whole or not at all, over one of the same name. Raises OSError, without a trace of the new file."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open_private(partial, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        name_synced(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def name_synced(path: Path, name: Path) -> None:
    """Gives a file that is on disk another name, over a file of that name."""
    os.replace(path, name)
    sync(name.parent)


def sync(path: Path) -> None:
    """Puts what was written to a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Puts a folder with all files and folders in it on disk; not its own name."""
    for held in folder.iterdir():
        if held.is_dir():
            sync_tree(held)
        else:
            sync(held)
    sync(folder)


def make_folder(path: Path) -> None:
    """Makes a private folder and its parents, as far as they are missing; their names are on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    make_private_folder(path)
    for folder in missing:
        sync(folder.parent)


def append_line(path: Path, line: Mapping[str, Any], *, synced: bool = False) -> None:
    r"""Appends one object as strict JSON; b"\n" alone ends a line of these files, and JSON holds none.

    A number that is not finite becomes null, a lone surrogate its escape.
    """
    try:
        text = _encode(line)
    except ValueError:
        text = _encode(finite(line))
    is_new = not path.exists()
    with open_private(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # a line torn by a kill stays alone
        file.write(f"{text}\n".encode(errors="backslashreplace"))
        if synced:
            file.flush()
            os.fsync(file.fileno())
    if synced and is_new:
        sync(path.parent)


def _encode(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
