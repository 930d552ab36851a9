"""A disk that loses its power: what a folder holds then, when everything that was not synced is gone.

A file is what it was at its own last sync, however often it was written since. A name in a folder is there when the folder was
synced after the name was made, and stays until the folder is synced after the name was removed. Every sync is noted by standing
in for os.fsync and os.fdatasync; files are known by their inode, so renames, links and replaced folders need no noting.
"""

import os
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

Tree = Mapping[str, "Tree | bytes"]
"""A folder: names, and the folder or the file's content behind each."""


@dataclass(frozen=True, slots=True)
class _Name:
    inode: int
    is_folder: bool


class Disk:
    """The folder `root`, whose own name is on disk from the beginning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.after_sync: Callable[[], None] = lambda: None
        """Is called after every sync, in the thread that synced."""
        self._root = root
        self._lock = threading.Lock()
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, _Name]] = {}
        self._held: list[int] = []
        """Open descriptors, because the number of a removed file would be given out again."""
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def left(self) -> Tree:
        """What a power failure at this moment would leave."""
        with self._lock:
            return self._folder(self._root.stat().st_ino)

    def _folder(self, inode: int) -> Tree:
        return {
            name: self._folder(entry.inode) if entry.is_folder else self._content.get(entry.inode, b"")
            for name, entry in self._names.get(inode, {}).items()
        }

    def _noting(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(file: object) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
            sync(descriptor)
            with self._lock:
                self._note(descriptor)
            self.after_sync()

        return noted

    def _note(self, descriptor: int) -> None:
        facts, path = os.fstat(descriptor), f"/proc/self/fd/{descriptor}"
        if facts.st_ino not in self._content and facts.st_ino not in self._names:
            self._held.append(os.open(path, os.O_RDONLY))  # dup would share its lock
        if stat.S_ISDIR(facts.st_mode):
            with os.scandir(path) as entries:
                self._names[facts.st_ino] = {
                    entry.name: _Name(entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries
                }
        else:
            self._content[facts.st_ino] = Path(path).read_bytes()


def put_back(tree: Tree, folder: Path) -> None:
    """Makes the folder with what was left."""
    folder.mkdir()
    for name, held in tree.items():
        if isinstance(held, bytes):
            (folder / name).write_bytes(held)
        else:
            put_back(held, folder / name)
