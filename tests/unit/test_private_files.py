"""What a run writes is its owner's alone, whatever the owner's umask says."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.coordinator.storage.run_files import RunFiles
from sluice.run_dir.durable import append_line, make_folder, write_synced
from sluice.run_dir.private import open_private


@pytest.fixture(autouse=True)
def _a_careless_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_files_and_folders_of_a_run_are_private(tmp_path: Path) -> None:
    make_folder(tmp_path / "runs" / "run")
    run_dir = tmp_path / "runs" / "run"
    files = RunFiles(run_dir)
    await files.keep_config("a: 1")
    await files.append("samples.jsonl", {"prompt": "p"})
    batch = await files.stage_batch(0, payloads=[b"one"])
    await files.name_batch(0, batch.digest)
    await files.write_ledger([{"group_id": "g"}], after=0, most=1)
    found = [run_dir, *run_dir.rglob("*")]
    assert len(found) == 8
    assert {(path.is_dir(), mode(path)) for path in found} == {(True, 0o700), (False, 0o600)}
    assert mode(tmp_path / "runs") == 0o777, "other runs may be other people's"


def test_permissions_that_an_owner_has_given_stay(tmp_path: Path) -> None:
    append_line(tmp_path / "lines", {})
    (tmp_path / "lines").chmod(0o644)
    append_line(tmp_path / "lines", {})
    with open_private(tmp_path / "lines", "ab") as file:
        file.write(b"x")
    assert mode(tmp_path / "lines") == 0o644


def test_a_file_that_is_replaced_is_private(tmp_path: Path) -> None:
    write_synced(tmp_path / "file", [b"a"])
    assert mode(tmp_path / "file") == 0o600
