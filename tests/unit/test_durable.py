"""What is durable is on disk in this order: the bytes, the name, the folder; and nothing points to it before."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.run_files import RunFiles
from sluice.run_dir.durable import append_line, write_synced
from sluice.run_dir.json_lines import read_json_lines


class Disk:
    """Notes every sync and rename; after a power failure only what was synced is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: list[tuple[str, str]] = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(descriptor: int) -> None:
            self.did.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
            fsync(descriptor)

        def noted_replace(path: Any, name: Any) -> None:
            self.did.append(("name", Path(name).name))
            replace(path, name)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_file_is_synced_then_named_then_its_folder_is_synced(disk: Disk, tmp_path: Path) -> None:
    write_synced(tmp_path / "file", [b"a", b"b"])
    assert disk.did == [("sync", "file.partial"), ("name", "file"), ("sync", tmp_path.name)]
    assert (tmp_path / "file").read_bytes() == b"ab"


def test_a_write_that_fails_leaves_the_former_file_and_no_partial_one(tmp_path: Path) -> None:
    write_synced(tmp_path / "file", [b"former"])

    def pieces() -> Any:
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_synced(tmp_path / "file", pieces())
    assert (tmp_path / "file").read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["file"]


def test_a_line_that_something_points_to_is_synced_with_its_folder(disk: Disk, tmp_path: Path) -> None:
    append_line(tmp_path / "lines", {"a": 1}, synced=True)
    append_line(tmp_path / "lines", {"a": 2}, synced=True)
    append_line(tmp_path / "lines", {"a": 3})
    assert disk.did == [("sync", "lines"), ("sync", tmp_path.name), ("sync", "lines")]


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb", "a\x1cb", "a\rb", "a\nb", "\ud800"])
def test_no_character_of_a_text_ends_its_line(tmp_path: Path, text: str) -> None:
    append_line(tmp_path / "lines", {"text": text})
    append_line(tmp_path / "lines", {"text": "after"})
    read = read_json_lines(tmp_path / "lines")
    assert [line["text"] for line in read.objects] == [text, "after"]
    assert read.torn_lines == 0


def test_a_line_is_strict_json_whatever_its_numbers(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", {"nan": math.nan, "deep": [{"inf": -math.inf, "one": 1.0}]})
    assert json.loads((tmp_path / "lines").read_text()) == {"nan": None, "deep": [{"inf": None, "one": 1.0}]}


class OrderedStore:
    """Notes when Redis is told, in the notes of the disk."""

    rows_written = 0

    def __init__(self, disk: Disk) -> None:
        self._disk, self._rows = disk, [{"group_id": "g", "term": "trained", "step": 0, "tokens": 3}]

    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        return 0, self._rows[:limit]

    async def drop_rows(self, before: int, count: int) -> None:
        self._disk.did.append(("redis", "drop_rows"))
        del self._rows[:count]


async def test_ledger_rows_leave_redis_after_their_file_and_its_name_are_on_disk(disk: Disk, tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    await LedgerFiles(store=OrderedStore(disk), files=files).flush()  # type: ignore[arg-type]
    part = "part-000000000000.parquet"
    assert disk.did == [("sync", f"{part}.partial"), ("name", part), ("sync", "ledger"), ("redis", "drop_rows")]


async def test_a_batch_is_on_disk_before_redis_records_it(disk: Disk, tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    batch = await files.stage_batch(3, payloads=[b"one", b"two"])
    staged = f"step-000003.{batch.digest[:16]}.staged"
    assert disk.did == [("sync", f"{staged}.partial"), ("name", staged), ("sync", "batches")]
    await files.name_batch(3, batch.digest)
    assert disk.did[3:] == [("name", "step-000003.groups"), ("sync", "batches")]
    disk.did.clear()
    await files.keep_poison(3, batch.digest)
    assert disk.did == [("sync", "batches")]
