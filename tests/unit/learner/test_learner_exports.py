"""Exports beside training: in their turn, one at a time, and never the end of the run."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from services.learner.checkpoint import exports
from services.learner.checkpoint.exports import BackgroundExports
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot
from tests.unit.learner.learner_cases import make_config


def _snapshot(number: int) -> Snapshot:
    packer = Packer(plan([("w", "float32", [1])], bucket_bytes=8))
    packer.put("w", np.full(1, number, np.float32))
    return packer.seal(PolicyVersion(lineage="a", number=number))


def _exports(tmp_path: Path, every: int) -> BackgroundExports:
    config = make_config(tmp_path, learner={"export_every_steps": every})
    return BackgroundExports(config=config, directory=tmp_path / "exports")


@pytest.mark.parametrize(("every", "exported"), [(0, []), (2, ["step-2", "step-4"]), (3, ["step-3"])])
def test_every_so_many_versions_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, exported: list[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(exports, "export_version", lambda _, *, config, target: seen.append(target.name))
    background = _exports(tmp_path, every)
    for number in range(1, 6):
        background.offer(_snapshot(number))
    background.close()
    assert seen == exported


def test_training_goes_on_during_an_export_and_waits_for_it_only_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, running, seen = threading.Event(), [], []

    def export(snapshot: Snapshot, **_: Any) -> None:
        running.append(snapshot)
        assert len(running) == 1
        assert release.wait(10)
        seen.append(snapshot.manifest.version.number)
        running.clear()

    monkeypatch.setattr(exports, "export_version", export)
    background = _exports(tmp_path, 1)
    background.offer(_snapshot(1))
    assert seen == []
    threading.Timer(0.01, release.set).start()
    background.offer(_snapshot(2))
    assert seen[0] == 1
    background.close()
    assert seen == [1, 2]


def test_an_export_that_hangs_costs_the_next_one_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(exports, "export_version", lambda *_, **__: release.wait(10))
    monkeypatch.setattr(exports, "WAIT_LIMIT_S", 0.01)
    background = _exports(tmp_path, 1)
    with capture_logs() as logs:
        background.offer(_snapshot(1))
        background.offer(_snapshot(2))
        background.close()
        assert [log["event"] for log in logs] == ["export_skipped", "export_abandoned"]
        release.set()
        monkeypatch.setattr(exports, "WAIT_LIMIT_S", 10.0)
        background.close()  # what its thread logs is not another test's


def test_an_export_that_fails_is_logged_and_the_next_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(snapshot: Snapshot, **_: Any) -> None:
        if snapshot.manifest.version.number == 1:
            raise SluiceError("the disk is full")

    monkeypatch.setattr(exports, "export_version", export)
    background = _exports(tmp_path, 1)
    with capture_logs() as logs:
        background.offer(_snapshot(1))
        background.offer(_snapshot(2))
        background.close()
    assert [(log["event"], log.get("reason")) for log in logs] == [
        ("export_failed", "the disk is full"),
        ("exported", None),
    ]
