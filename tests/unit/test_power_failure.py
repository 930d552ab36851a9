"""The disk that loses its power loses what a disk may lose, and nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.run_dir.durable import append_line, make_folder, sync, sync_tree, write_synced
from tests.power_failure import Disk, put_back


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Disk]:
    made = Disk(monkeypatch, tmp_path)
    yield made
    made.close()


def test_what_was_not_synced_is_gone(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    assert disk.left() == {}
    sync(tmp_path / "file")
    assert disk.left() == {}, "a file without its name in the folder"
    sync(tmp_path)
    assert disk.left() == {"file": b"one"}
    (tmp_path / "file").write_bytes(b"two")
    assert disk.left() == {"file": b"one"}


def test_a_name_of_a_file_that_was_not_synced_is_empty(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    sync(tmp_path)
    assert disk.left() == {"file": b""}


def test_a_rename_and_a_removal_need_the_folder(disk: Disk, tmp_path: Path) -> None:
    write_synced(tmp_path / "file", [b"one"])
    os.replace(tmp_path / "file", tmp_path / "other")
    assert disk.left() == {"file": b"one"}
    sync(tmp_path)
    assert disk.left() == {"other": b"one"}
    (tmp_path / "other").unlink()
    (tmp_path / "third").write_bytes(b"three")
    sync(tmp_path / "third")
    assert disk.left() == {"other": b"one"}


def test_a_new_folder_is_on_disk_with_its_parents(disk: Disk, tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    assert disk.left() == {"a": {"b": {}}}
    make_folder(tmp_path / "a" / "b")
    append_line(tmp_path / "a" / "b" / "lines", {"x": 1}, synced=True)
    assert disk.left() == {"a": {"b": {"lines": b'{"x":1}\n'}}}


def test_a_tree_is_on_disk_with_every_file_in_it(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"1")
    (tmp_path / "a" / "b" / "two").write_bytes(b"2")
    sync_tree(tmp_path / "a")
    sync(tmp_path)
    assert disk.left() == {"a": {"one": b"1", "b": {"two": b"2"}}}


def test_what_was_left_can_be_put_back(disk: Disk, tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    write_synced(tmp_path / "a" / "file", [b"one"])
    left = disk.left()
    put_back(left, tmp_path / "again")
    assert (tmp_path / "again" / "a" / "file").read_bytes() == b"one"
