"""The leader's loop against scripted neighbours: order of publication and commit, lineages, checkpoints, stopping."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from services.learner.batch import Batch
from services.learner.checkpoint import CheckpointState
from services.learner.lineage import LineageBook
from services.learner.loop import Leader, follow
from services.learner.ports import NoBatch
from services.learner.ranks import Command
from services.learner.worker import Worker
from sluice.weights.manifest import PolicyVersion, plan
from sluice.weights.snapshot import Packer, Snapshot
from tests.unit.learner.learner_cases import make_batch

ENDED = NoBatch(reason="ended", ended=True)
NOT_YET = NoBatch(reason="not yet", ended=False)


@dataclass(kw_only=True)
class Scene:
    """Worker, ranks, coordinator and front in one, with a diary."""

    found: list[Batch | NoBatch]
    recorded: dict[int, str] = field(default_factory=dict)
    step: int = 0
    saved: Path | None = None
    disk_full: bool = False
    stop_at: int = 1000
    wishes_at: tuple[int, ...] = ()
    diary: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> "Scene":
        return self

    def command(self, command: Command = Command.IDLE) -> Command:
        self.diary.append(command.name)
        return command

    def train(self, batch: Batch | None) -> dict[str, float]:
        self.step, self.saved = self.step + 1, None
        return {}

    def gather(self, version: PolicyVersion) -> Snapshot:
        return _snapshot(version)

    def save(self, state: CheckpointState) -> None:
        self.saved = None if self.disk_full else Path(f"step-{state.step}")
        self.diary.append(f"saved {[batch.step for batch in state.trained]}")

    def batch(self, step: int) -> Batch | NoBatch:
        return self.found.pop(0)

    def commit_step(
        self, batch: Batch, *, version: PolicyVersion, weights_digest: str, metrics: Mapping[str, float]
    ) -> str:
        self.diary.append(f"committed {version}")
        return self.recorded.get(batch.step, weights_digest)

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        self.diary.append(f"booked {version} {path}")

    def publish(self, snapshot: Snapshot) -> None:
        self.diary.append(f"published {snapshot.manifest.version}")

    @property
    def stopping(self) -> bool:
        return self.step >= self.stop_at

    @property
    def checkpoint_wanted(self) -> bool:
        return self.step in self.wishes_at and "answered" not in self.diary

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        if self.checkpoint_wanted:
            self.diary.append("answered")


def _snapshot(version: PolicyVersion) -> Snapshot:
    packer = Packer(plan([("w", "float32", [2])], bucket_bytes=8))
    packer.put("w", np.full(2, version.number, np.float32))
    return packer.seal(version)


def _lead(scene: Scene, directory: Path, *, every: int = 100) -> bool:
    part = cast(Any, scene)
    return Leader(
        worker=part,
        coordinator=part,
        front=part,
        lineages=LineageBook(directory / "lineages"),
        state=CheckpointState(step=scene.step, lineage="a"),
        snapshot=_snapshot(PolicyVersion(lineage="a", number=scene.step)),
        checkpoint_every_steps=every,
    ).run()


def test_a_step_is_trained_published_and_only_then_committed(tmp_path: Path) -> None:
    scene = Scene(found=[make_batch(step=0), ENDED])
    assert _lead(scene, tmp_path)
    assert scene.diary == [
        "TRAIN",
        "published a1",
        "committed a1",
        "CHECKPOINT",
        "saved [0]",
        "booked a1 step-1",
        "STOP",
    ]


def test_the_other_ranks_hear_of_the_leader_after_every_empty_poll(tmp_path: Path) -> None:
    scene = Scene(found=[NOT_YET, NOT_YET, ENDED])
    assert _lead(scene, tmp_path)
    assert scene.diary == ["IDLE", "IDLE", "STOP"]


def test_a_replay_that_differs_mints_one_lineage_and_publishes_and_commits_again_under_it(tmp_path: Path) -> None:
    scene = Scene(found=[make_batch(step=0), make_batch(step=1), ENDED], recorded={0: "other", 1: "other"})
    assert _lead(scene, tmp_path)
    published = [line for line in scene.diary if line.startswith(("published", "committed"))]
    assert published == ["published a1", "committed a1", "published b1", "committed b1", "published b2", "committed b2"]


def test_checkpoints_come_every_so_many_steps_and_carry_the_batches_since_the_last(tmp_path: Path) -> None:
    scene = Scene(found=[*(make_batch(step=step) for step in range(5)), ENDED])
    assert _lead(scene, tmp_path, every=2)
    assert [line for line in scene.diary if line.startswith("saved")] == ["saved [0, 1]", "saved [2, 3]", "saved [4]"]


def test_a_full_disk_does_not_end_the_run_and_loses_no_trained_batch(tmp_path: Path) -> None:
    scene = Scene(found=[make_batch(step=0), make_batch(step=1), ENDED], disk_full=True)
    assert _lead(scene, tmp_path, every=1)
    assert [line for line in scene.diary if line.startswith(("saved", "booked"))][-1] == "saved [0, 1]"


def test_a_wished_checkpoint_is_saved_while_waiting_for_a_batch(tmp_path: Path) -> None:
    scene = Scene(found=[make_batch(step=0), NOT_YET, ENDED], wishes_at=(1,))
    assert _lead(scene, tmp_path)
    assert scene.diary[3:] == ["CHECKPOINT", "saved [0]", "booked a1 step-1", "answered", "IDLE", "STOP"]


def test_a_stop_ends_after_the_step_under_way_with_a_checkpoint(tmp_path: Path) -> None:
    scene = Scene(found=[make_batch(step=0), make_batch(step=1)], stop_at=1)
    assert not _lead(scene, tmp_path)
    assert scene.diary[-3:] == ["saved [0]", "booked a1 step-1", "STOP"]


def test_a_follower_does_what_it_is_told_until_stop() -> None:
    done: list[str] = []
    script = iter([Command.IDLE, Command.TRAIN, Command.CHECKPOINT, Command.STOP])

    class Ranks:
        def command(self) -> Command:
            return next(script)

    class Follower:
        ranks = Ranks()
        step = 1

        def train(self, batch: None) -> None:
            done.append("train")

        def gather(self, version: PolicyVersion) -> None:
            done.append("gather")

        def save(self, state: CheckpointState) -> None:
            done.append("save")

    follow(cast(Worker, Follower()))
    assert done == ["train", "gather", "save"]


@pytest.mark.parametrize(("known", "fresh"), [("", "b"), ("a\nb", "c"), ("a\nz", "aa"), ("a\naz", "ba")])
def test_a_minted_lineage_is_one_that_no_history_has(tmp_path: Path, known: str, fresh: str) -> None:
    path = tmp_path / "lineages"
    if known:
        path.write_text(known)
    book = LineageBook(path)
    assert book.mint() == fresh
    assert path.read_text().split()[-1] == fresh
    assert book.mint() != fresh
