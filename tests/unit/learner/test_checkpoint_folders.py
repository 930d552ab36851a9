"""Checkpoint folders: complete or absent, verified, retained."""

import json
from pathlib import Path

import pytest

from services.learner.checkpoint import folders
from services.learner.checkpoint import training_state as checkpoint
from sluice.errors import ConfigError
from sluice.lineage import Rollback
from sluice.run_dir.checkpoints import STATE


def _write(directory: Path, step: int) -> Path:
    partial = folders.partial_of(directory, step)
    folders.begin(partial)
    (partial / "shard").write_bytes(bytes([step]) * 100)
    (partial / ".metadata").write_bytes(b"plan")
    return folders.seal(partial, step)


def test_a_sealed_folder_verifies_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = _write(tmp_path, 3)
    folders.verify(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-3"]


def test_a_checkpoint_that_was_rolled_back_is_not_resumed_from(tmp_path: Path) -> None:
    for step, lineage in ((2, "a"), (3, "a"), (4, "b"), (5, "a")):
        partial = folders.partial_of(tmp_path, step)
        folders.begin(partial)
        (partial / STATE).write_text(json.dumps({"step": step, "lineage": lineage, "trained": []}))
        folders.seal(partial, step)
    back_to_2 = Rollback(to=2, lineage="b")
    assert checkpoint.choose("auto", directory=tmp_path) == tmp_path / "step-5"
    assert checkpoint.choose("auto", directory=tmp_path, rollbacks=[back_to_2]) == tmp_path / "step-4"
    again = [back_to_2, Rollback(to=3, lineage="c")]
    assert checkpoint.choose("auto", directory=tmp_path, rollbacks=again) == tmp_path / "step-2"
    with pytest.raises(ConfigError, match="step-5: was rolled back, the run goes on from version 3"):
        checkpoint.choose(str(tmp_path / "step-5"), directory=tmp_path, rollbacks=again)


@pytest.mark.parametrize("name", ["shard", ".metadata"])
def test_a_file_cut_short_or_altered_or_missing_is_found(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, 3)
    (path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="size or hash differs"):
        folders.verify(path)
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        folders.verify(path)


def test_the_newest_checkpoint_that_verifies_is_chosen(tmp_path: Path) -> None:
    good, bad = _write(tmp_path, 9), _write(tmp_path, 10)
    (bad / "shard").write_bytes(b"torn")
    folders.begin(folders.partial_of(tmp_path, 11))
    assert checkpoint.choose("auto", directory=tmp_path) == good
    assert checkpoint.choose("never", directory=tmp_path) is None
    assert checkpoint.choose("auto", directory=tmp_path / "empty") is None


def test_a_named_checkpoint_that_does_not_verify_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner\.resume"):
        checkpoint.choose(str(tmp_path / "step-1"), directory=tmp_path)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 4):
        _write(tmp_path, step)
    folders.retain(tmp_path, newest=10, keep=2)
    assert sorted(folders.steps(tmp_path)) == [4, 10]


def test_a_later_checkpoint_that_was_passed_over_does_not_cost_the_one_that_was_just_written(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        _write(tmp_path, step)
    folders.retain(tmp_path, newest=4, keep=1)
    assert sorted(folders.steps(tmp_path)) == [4, 10]


def test_a_disk_without_room_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a checkpoint needs about"):
        folders.begin(folders.partial_of(tmp_path, 3), needed_bytes=1 << 62)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_at_the_next_beginning(tmp_path: Path) -> None:
    for step in (1, 2):
        folders.begin(folders.partial_of(tmp_path, step))
        (folders.partial_of(tmp_path, step) / "shard").write_bytes(b"half")
    assert [path.name for path in tmp_path.iterdir()] == [".step-2.partial"]
    _write(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("text", ["{}", "[]", "null", ""])
def test_a_manifest_that_names_nothing_proves_nothing(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path, 3)
    (path / folders.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        folders.verify(path)


def test_the_same_step_saved_again_replaces_the_former_one(tmp_path: Path) -> None:
    _write(tmp_path, 3)
    folders.verify(_write(tmp_path, 3))
