"""Writes that outlive a power failure: the file is on disk, and its name in the folder, before anything points to it.

A rename alone keeps its place in the order of writes on no file system by promise: after a power failure the new name may
hold an empty file, or be gone. So the bytes are synced, then the file gets its name, then the folder is synced. New files and
folders are private (private.py).
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sluice.run_dir.full_disk import is_full, located
from sluice.run_dir.private import make_private_folder, open_private
from sluice.strict_json import finite


def write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    """Writes a file whole or not at all, over one of the same name. Raises OSError, without a trace of the new file.

    The error of a full disk is NoRoom, with the size of the file.
    """
    partial, pieces, size_bytes = path.with_name(path.name + ".partial"), iter(pieces), 0
    try:
        with open_private(partial, "wb", buffering=0) as file:
            for piece in pieces:
                size_bytes += len(piece)
                _write_whole(file, piece)
            os.fsync(file.fileno())
        name_synced(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if not is_full(error):
            raise
        raise located(error, path.parent, size_bytes + sum(map(len, pieces))) from error


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


_appending = threading.Lock()
"""Held while a line is appended, because a line that finds no room is taken back: up to where the file was before."""


def append_line(path: Path, line: Mapping[str, Any], *, synced: bool = False) -> None:
    r"""Appends one object as strict JSON; b"\n" alone ends a line of these files, and JSON holds none.

    A number that is not finite becomes null, a lone surrogate its escape. Raises OSError, NoRoom for a full disk: then the
    file is as it was.
    """
    append_lines(path, [line], synced=synced)


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]], *, synced: bool = False) -> None:
    """Appends all lines or none, as `append_line` does."""
    data = "".join(f"{_encode(line)}\n" for line in lines).encode(errors="backslashreplace")
    with _appending:
        is_new = not path.exists()
        try:
            _append(path, data, synced=synced)
            if synced and is_new:
                sync(path.parent)
        except OSError as error:
            if not is_full(error):
                raise
            raise located(error, path.parent, len(data)) from error


def _append(path: Path, data: bytes, *, synced: bool) -> None:
    """Appends to a file, which after an error is as long as before."""
    with open_private(path, "ab+", buffering=0) as file:
        was_bytes = file.seek(0, os.SEEK_END)
        if was_bytes > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                data = b"\n" + data  # a line torn by a kill stays alone
        try:
            _write_whole(file, data)
            if synced:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(was_bytes)
            raise


def _write_whole(file: BinaryIO, data: bytes) -> None:
    """Writes all of `data`: one call may write a part, on a disk that is nearly full or for more than 2 GiB."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _encode(line: Mapping[str, Any]) -> str:
    try:
        return _strict(line)
    except ValueError:
        return _strict(finite(line))


def _strict(line: Mapping[str, Any]) -> str:
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
