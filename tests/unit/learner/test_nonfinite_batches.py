"""Batches with a skipped update are kept for people, the newest ones, because a run may skip some for a year."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.learner import rank_worker


def keep(folder: Path, step: int, *, leads: bool = True) -> None:
    ranks: Any = SimpleNamespace(leads=leads)
    batch: Any = SimpleNamespace(step=step)
    rank_worker._keep(ranks, folder, batch)


def test_the_newest_are_kept_also_when_a_rollback_went_to_earlier_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(batch: Any, path: Path) -> None:
        path.write_text("batch")
        written.append(path)
        os.utime(path, ns=(len(written), len(written)))

    monkeypatch.setattr(rank_worker, "write_batch", write)
    folder = tmp_path / "nonfinite"
    steps = [*range(100, 130), 7, 8]
    for step in steps:
        keep(folder, step)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"step-{step}.npz" for step in steps[-rank_worker.KEPT_NONFINITE :]
    )
    (folder / "note.txt").write_text("mine")
    keep(folder, 9)
    assert (folder / "note.txt").exists()
    keep(tmp_path / "elsewhere", 9, leads=False)
    assert not (tmp_path / "elsewhere").exists()
