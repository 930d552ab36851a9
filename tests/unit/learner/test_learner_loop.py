"""The leader's loop against scripted neighbours: order of publication and commit, lineages, checkpoints, stopping."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from services.learner import loop
from services.learner.batches.batch import Batch
from services.learner.checkpoint.training_record import TrainingRecord
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.distributed.ranks import Command
from services.learner.loop import Leader, follow
from services.learner.ports import NoBatch
from services.learner.publishing import Publishing
from sluice.clock import SystemClock
from sluice.errors import Expired, Fenced, SluiceError
from sluice.lineage import LineageBook
from sluice.policy_version import PolicyVersion
from sluice.run_dir.full_disk import DiskWaits
from sluice.run_dir.token_figures import TokenFigures
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot
from tests.unit.learner.learner_cases import make_batch

ENDED = NoBatch(reason="ended", ended=True)
NOT_YET = NoBatch(reason="not yet", ended=False)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SETTLE_POLL_S", 0.001)


@dataclass(kw_only=True)
class FakeRun:
    """Worker, ranks, coordinator and publisher in one, with a diary."""

    found: list[Batch | NoBatch]
    recorded: dict[int, str] = field(default_factory=dict)
    step: int = 0
    restored: Path | None = None
    full_at: tuple[int, ...] = ()
    """Steps at which the disk refuses a checkpoint."""
    slow_disk: bool = False
    """A checkpoint is complete only when `finish_writing` is called, which an idle command does."""
    writing: "tuple[int, Future[Path | None]] | None" = None
    stop_at: int = 1000
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the newest commit."""
    booked_example: TokenFigures | None = None
    """Likewise."""
    wishes_at: tuple[int, ...] = ()
    served: int = 0
    exported: list[str] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)
    may_seal: threading.Event = field(default_factory=threading.Event)
    """Until then digests take for ever."""
    fails_at: int = -1
    """The step whose booking raises Fenced."""

    def __post_init__(self) -> None:
        self.may_seal.set()

    def command(self, command: Command = Command.IDLE) -> Command:
        self.diary.append(command.name)
        if command is Command.IDLE:
            self.finish_writing()
        return command

    def train(self, batch: Batch | None) -> dict[str, float]:
        self.step += 1
        return {}

    @property
    def example(self) -> TokenFigures | None:
        return TokenFigures(group_id=f"example of {self.step}", log_ratios=np.zeros(1), entropies=np.ones(1))

    def pack(self, version: PolicyVersion) -> "Unsealed":
        return Unsealed(version, self.may_seal)

    @property
    def publish_phases_ms(self) -> dict[str, float]:
        return {"gather": 1.0, "pack": 2.0}

    def save(self, state: CheckpointState) -> "Future[Path | None]":
        assert self.writing is None
        self.diary.append(f"saving {state.step} {[batch.step for batch in state.trained]}")
        self.writing = (state.step, Future())
        written = self.writing[1]
        if not self.slow_disk:
            self.finish_writing()
        return written

    def finish_writing(self) -> None:
        if self.writing is not None:
            (step, written), self.writing = self.writing, None
            written.set_result(None if step in self.full_at else Path(f"step-{step}"))

    def wake(self) -> None:
        self.diary.append("woken")

    def batch(self, step: int) -> Batch | NoBatch:
        return self.found.pop(0)

    def commit_step(
        self,
        batch: Batch,
        *,
        version: PolicyVersion,
        weights_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None,
    ) -> str:
        if batch.step == self.fails_at:
            raise Fenced("another learner has taken over")
        self.diary.append(f"committed {version}")
        self.metrics, self.booked_example = metrics, example
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
        return self.step in self.wishes_at

    def checkpoint_begun(self) -> None:
        if self.checkpoint_wanted:
            self.wishes_at = tuple(step for step in self.wishes_at if step != self.step)
            self.served += 1

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        if self.served:
            self.served = 0
            self.diary.append(f"answered {version} {path}")

    def export(self, snapshot: Snapshot) -> None:
        self.exported.append(str(snapshot.manifest.version))


@dataclass(frozen=True)
class Unsealed:
    """A version whose digest is computed when it may be."""

    version: PolicyVersion
    may_seal: threading.Event

    def seal(self) -> Snapshot:
        assert self.may_seal.wait(10)
        return _snapshot(self.version)


def _snapshot(version: PolicyVersion) -> Snapshot:
    packer = Packer(plan([("w", "float32", [2])], bucket_bytes=8))
    packer.put("w", np.full(2, version.number, np.float32))
    return packer.seal(version)


def _lead(fake: FakeRun, directory: Path, *, every: int = 100, record: TrainingRecord | None = None) -> bool:
    record = record or TrainingRecord()
    publishing = Publishing(
        coordinator=fake,
        publisher=fake,
        lineages=LineageBook(directory / "lineages"),
        record=record,
        lineage="a",
        snapshot=_snapshot(PolicyVersion(lineage="a", number=fake.step)),
        export=fake.export,
        disk=DiskWaits(clock=SystemClock()),
    )
    return Leader(
        worker=fake,
        coordinator=fake,
        publisher=fake,
        publishing=publishing,
        record=record,
        checkpoint_every_steps=every,
    ).run()


def test_a_step_is_trained_published_and_only_then_committed(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), ENDED])
    assert _lead(fake, tmp_path)
    assert fake.diary == [
        "TRAIN",
        "PUBLISH",
        "published a1",
        "committed a1",
        "CHECKPOINT",
        "saving 1 [0]",
        "booked a1 step-1",
        "woken",
        "STOP",
    ]
    assert fake.exported == ["a1"]
    assert fake.metrics["learner/gather_ms"] == 1.0
    assert fake.booked_example is not None
    assert fake.booked_example.group_id == "example of 1"
    assert fake.metrics["learner/publish_s"] > 0


def test_the_next_step_trains_while_a_version_is_digested_and_the_version_after_it_waits(tmp_path: Path) -> None:
    class Slow(FakeRun):
        def train(self, batch: Batch | None) -> dict[str, float]:
            self.diary.append(f"trained {self.step}")
            return super().train(batch)

        def command(self, command: Command = Command.IDLE) -> Command:
            if command is Command.IDLE and self.step == 2:
                self.may_seal.set()  # the second step is over, and waits for the first version
            return super().command(command)

    fake = Slow(found=[make_batch(step=0), make_batch(step=1), ENDED])
    fake.may_seal.clear()
    assert _lead(fake, tmp_path)
    trained = fake.diary.index("trained 1")
    assert fake.diary[:trained] == ["TRAIN", "trained 0", "PUBLISH", "TRAIN"]
    assert fake.diary.index("published a1") > trained
    order = ["published a1", "committed a1", "PUBLISH", "published a2", "committed a2", "CHECKPOINT"]
    assert [line for line in fake.diary[trained:] if line in order] == order


def test_a_learner_whose_booking_is_refused_ends_while_it_waits_for_its_next_batch(tmp_path: Path) -> None:
    class Patient(FakeRun):
        def batch(self, step: int) -> Batch | NoBatch:
            return self.found.pop(0) if self.found else self.waits()

        def waits(self) -> NoBatch:
            assert woken.wait(10)
            return NOT_YET

        def wake(self) -> None:
            super().wake()
            woken.set()

    woken = threading.Event()
    fake = Patient(found=[make_batch(step=0)], fails_at=0)
    with pytest.raises(Fenced):
        _lead(fake, tmp_path)
    assert "woken" in fake.diary
    assert "published a1" in fake.diary


def test_a_step_that_fails_lets_the_version_before_it_be_booked(tmp_path: Path) -> None:
    class Breaks(FakeRun):
        def train(self, batch: Batch | None) -> dict[str, float]:
            if self.step == 1:
                threading.Timer(0.05, self.may_seal.set).start()
                raise SluiceError("memory ran out")
            return super().train(batch)

    fake = Breaks(found=[make_batch(step=0), make_batch(step=1)])
    fake.may_seal.clear()
    with pytest.raises(SluiceError, match="memory ran out"):
        _lead(fake, tmp_path)
    assert fake.diary[-1] == "committed a1"


def test_the_other_ranks_hear_of_the_leader_after_every_empty_poll(tmp_path: Path) -> None:
    fake = FakeRun(found=[NOT_YET, NOT_YET, ENDED])
    assert _lead(fake, tmp_path)
    assert fake.diary == ["IDLE", "IDLE", "STOP"]


def test_a_replay_that_differs_mints_one_lineage_and_publishes_and_commits_again_under_it(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), make_batch(step=1), ENDED], recorded={0: "other", 1: "other"})
    assert _lead(fake, tmp_path)
    published = [line for line in fake.diary if line.startswith(("published", "committed"))]
    assert published == ["published a1", "committed a1", "published b1", "committed b1", "published b2", "committed b2"]


def test_checkpoints_come_every_so_many_steps_and_carry_the_batches_since_the_last(tmp_path: Path) -> None:
    fake = FakeRun(found=[*(make_batch(step=step) for step in range(5)), ENDED])
    assert _lead(fake, tmp_path, every=2)
    assert _of(fake, "saving") == ["saving 2 [0, 1]", "saving 4 [2, 3]", "saving 5 [4]"]


def test_a_full_disk_does_not_end_the_run_and_loses_no_trained_batch(tmp_path: Path) -> None:
    fake = FakeRun(found=[*(make_batch(step=step) for step in range(3)), ENDED], full_at=(1, 2))
    assert _lead(fake, tmp_path, every=1)
    assert _of(fake, "saving") == ["saving 1 [0]", "saving 2 [0, 1]", "saving 3 [0, 1, 2]"]
    assert _of(fake, "booked") == ["booked a3 step-3"]


def test_training_goes_on_during_a_write_and_the_checkpoint_is_booked_only_when_it_is_complete(tmp_path: Path) -> None:
    found = [make_batch(step=0), make_batch(step=1), NOT_YET, ENDED]
    fake = FakeRun(found=found, slow_disk=True)
    assert _lead(fake, tmp_path, every=1)
    assert fake.diary == [
        "TRAIN",
        "PUBLISH",
        "published a1",
        "committed a1",
        "CHECKPOINT",
        "saving 1 [0]",
        "TRAIN",
        "PUBLISH",
        "published a2",
        "committed a2",
        "IDLE",  # the second checkpoint waits for the first
        "woken",
        "booked a1 step-1",
        "CHECKPOINT",
        "saving 2 [1]",
        "IDLE",  # no batch yet
        "woken",
        "booked a2 step-2",
        "STOP",
    ]


def test_a_write_that_fails_late_leaves_its_batches_to_the_next_checkpoint(tmp_path: Path) -> None:
    fake = FakeRun(found=[*(make_batch(step=step) for step in range(4)), ENDED], slow_disk=True, full_at=(2,))
    assert _lead(fake, tmp_path, every=2)
    assert _of(fake, "saving") == ["saving 2 [0, 1]", "saving 4 [0, 1, 2, 3]"]
    assert _of(fake, "booked") == ["booked a4 step-4"]


def test_the_run_ends_only_when_its_last_checkpoint_is_booked(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), ENDED], slow_disk=True)
    assert _lead(fake, tmp_path)
    assert fake.diary[-5:] == ["saving 1 [0]", "IDLE", "woken", "booked a1 step-1", "STOP"]


def test_a_write_that_never_ends_ends_the_run_with_who_waited_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRun(found=[make_batch(step=0), ENDED], slow_disk=True)
    monkeypatch.setattr(fake, "finish_writing", lambda: None)
    monkeypatch.setattr(loop, "WRITE_LIMIT_S", 0.0)
    with pytest.raises(Expired, match="checkpoint of a1: training waited"):
        _lead(fake, tmp_path)


def test_a_wished_checkpoint_begins_while_waiting_for_a_batch(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), NOT_YET, ENDED], wishes_at=(1,))
    assert _lead(fake, tmp_path)
    assert fake.diary[4:] == [
        "CHECKPOINT",
        "saving 1 [0]",
        "booked a1 step-1",
        "answered a1 step-1",
        "woken",
        "IDLE",
        "STOP",
    ]


def test_a_wish_during_the_write_of_an_older_version_is_not_answered_with_that_one(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), make_batch(step=1), ENDED], slow_disk=True, wishes_at=(1, 2))
    assert _lead(fake, tmp_path)
    assert _of(fake, "answered") == ["answered a1 step-1", "answered a2 step-2"]
    assert fake.diary.index("answered a1 step-1") < fake.diary.index("saving 2 [1]")


def test_a_wish_for_what_is_saved_or_cannot_be_is_answered_at_once(tmp_path: Path) -> None:
    fresh = FakeRun(found=[ENDED], wishes_at=(0,))
    assert _lead(fresh, tmp_path)
    assert fresh.diary == ["answered a0 None", "STOP"]
    resumed = FakeRun(found=[ENDED], step=7, restored=Path("step-7"), wishes_at=(7,))
    assert _lead(resumed, tmp_path)
    assert resumed.diary == ["answered a7 step-7", "STOP"]


def test_a_stop_ends_after_the_step_under_way_with_a_checkpoint(tmp_path: Path) -> None:
    fake = FakeRun(found=[make_batch(step=0), make_batch(step=1)], stop_at=1)
    assert not _lead(fake, tmp_path)
    assert fake.diary[-4:] == ["saving 1 [0]", "booked a1 step-1", "woken", "LEAVE"]


def _of(fake: FakeRun, kind: str) -> list[str]:
    return [line for line in fake.diary if line.startswith(kind)]


@pytest.mark.parametrize(("last", "ended"), [(Command.STOP, True), (Command.LEAVE, False)])
def test_a_follower_does_what_it_is_told_until_the_end_and_knows_which_end_it_is(last: Command, ended: bool) -> None:
    done: list[str] = []
    script = iter([Command.IDLE, Command.TRAIN, Command.PUBLISH, Command.CHECKPOINT, last])

    class Follower(FakeRun):
        def command(self) -> Command:
            return next(script)

        def train(self, batch: None) -> None:
            done.append("train")

        def pack(self, version: PolicyVersion) -> None:
            done.append("pack")

        def save(self, state: CheckpointState) -> None:
            done.append("save")

    assert follow(Follower(found=[], step=1)) is ended
    assert done == ["train", "pack", "save"]


@pytest.mark.parametrize(("known", "fresh"), [("", "b"), ("a\nb", "c"), ("a\nz", "aa"), ("a\naz", "ba")])
def test_a_minted_lineage_is_one_that_no_history_has(tmp_path: Path, known: str, fresh: str) -> None:
    path = tmp_path / "lineages"
    if known:
        path.write_text(known)
    book = LineageBook(path)
    assert book.mint() == fresh
    assert path.read_text().split()[-1] == fresh
    assert book.mint() != fresh
