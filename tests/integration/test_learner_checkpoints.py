"""What is saved while training goes on is what was held at that step; it is found again, whole, on any number of ranks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from torch.distributed.checkpoint.filesystem import FileSystemReader

from services.learner.batches.batch import Batch
from services.learner.checkpoint import folders
from services.learner.checkpoint import training_state as checkpoint
from services.learner.checkpoint import writer as writing
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.checkpoint.writer import CheckpointWriter
from services.learner.distributed.ranks import Ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.run_dir import durable
from sluice.run_dir.checkpoints import step_of
from tests.integration.learner_rank import on_ranks, run_job
from tests.power_failure import Disk, put_back
from tests.unit.learner.learner_cases import make_batch, make_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

SCHEDULE = {"lr": 1e-2, "warmup_steps": 2, "lr_scheduler_type": "cosine", "mini_batch_size": 3, "weight_decay": 0.1}
Figures = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def by_two(learner_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Figures]]:
    """Two ranks: six steps straight, saving version 3 meanwhile; three steps; and from version 3 to version 6, saved."""
    folder = tmp_path_factory.mktemp("two")
    saved = folder / "checkpoints"
    jobs = [
        _job(until=6, save=str(saved), save_at=3),
        _job(until=3),
        _job(until=6, load=str(saved / "step-3"), save=str(saved)),
    ]
    return saved, on_ranks(learner_model, folder / "out", jobs, ranks=2)


def test_two_ranks_go_on_from_what_they_saved_during_training_as_if_they_had_never_stopped(
    by_two: tuple[Path, list[Figures]],
) -> None:
    _, (straight, _, resumed) = by_two
    assert np.array_equal(straight["weights"], resumed["weights"])
    assert straight["metric/loss/lr"] == resumed["metric/loss/lr"]
    assert straight["metric/loss/lr"] < 1e-2 * 0.9  # the schedule is at work


def test_one_rank_goes_on_from_what_it_saved_during_training_as_if_it_had_never_stopped(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    straight = run_job(learner_model, _job(until=6, save=str(tmp_path), save_at=3), alone)
    resumed = run_job(learner_model, _job(until=6, load=str(tmp_path / "step-3")), alone)
    assert np.array_equal(straight["weights"], resumed["weights"])
    assert straight["metric/loss/lr"] == resumed["metric/loss/lr"]


def test_what_two_ranks_saved_one_rank_and_three_ranks_hold_bit_for_bit_and_train_on(
    learner_model: Path, alone: Ranks, by_two: tuple[Path, list[Figures]], tmp_path: Path
) -> None:
    saved, (straight, half, _) = by_two
    jobs = [_job(until=until, load=str(saved / "step-3")) for until in (3, 6)]
    by_one = [run_job(learner_model, job, alone) for job in jobs]
    by_three = on_ranks(learner_model, tmp_path / "out", jobs, ranks=3)
    for loaded, trained_on in (by_one, by_three):
        assert np.array_equal(loaded["weights"], half["weights"])
        assert np.allclose(trained_on["weights"], straight["weights"], rtol=1e-3, atol=1e-5)


def test_any_file_that_is_cut_short_or_altered_is_named_and_the_checkpoint_before_is_taken(
    learner_model: Path, alone: Ranks, by_two: tuple[Path, list[Figures]], tmp_path: Path
) -> None:
    saved, (_, half, _) = by_two
    names = sorted(path.name for path in (saved / "step-6").iterdir())
    assert len(names) == 5  # two shards, torch's metadata, our state, the manifest
    for damage in (_truncate, _flip):
        for name in names:
            copy = tmp_path / f"{damage.__name__}-{name}"
            shutil.copytree(saved, copy)
            damage(copy / "step-6" / name)
            with capture_logs() as logs:
                assert checkpoint.choose("auto", directory=copy) == copy / "step-3"
            assert [log["event"] for log in logs] == ["checkpoint_skipped"]
            assert name in logs[0]["reason"]
    again = run_job(learner_model, _job(until=3, load=str(copy / "step-3")), alone)
    assert np.array_equal(again["weights"], half["weights"])


@pytest.mark.parametrize("background", [True, False])
def test_exactly_the_newest_are_kept_after_eight_saves(
    learner_model: Path, alone: Ranks, tmp_path: Path, background: bool
) -> None:
    trainer = _trainer(learner_model, alone)
    writer = CheckpointWriter(directory=tmp_path, keep=3, background=background, ranks=alone)
    for _ in range(8):
        trainer.step += 1
        saved = writer.begin(trainer, CheckpointState(step=trainer.step, lineage="a"))
    assert saved.result(timeout=30) == tmp_path / "step-8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6", "step-7", "step-8"]


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (writing, "save_shards"),
        (writing, "write_state"),
        (folders, "seal"),
        (durable.os, "replace"),
        (folders, "retain"),
    ],
)
def test_a_process_killed_before_any_part_of_a_write_leaves_a_checkpoint_to_go_on_from(
    learner_model: Path, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    trainer = _trainer(learner_model, alone)
    writer = CheckpointWriter(directory=tmp_path, keep=1, background=False, ranks=alone)
    _step_and_save(trainer, writer)

    class Killed(BaseException):
        pass

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, function, kill)
        with pytest.raises(Killed):
            _step_and_save(trainer, writer)
    complete = 2 if function == "retain" else 1
    assert checkpoint.choose("auto", directory=tmp_path) == tmp_path / f"step-{complete}"
    _step_and_save(trainer, writer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("background", [True, False])
def test_the_power_may_fail_at_any_moment_and_the_newest_checkpoint_that_was_told_of_is_there(
    learner_model: Path, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, background: bool
) -> None:
    told, moments = [0], []
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        disk.after_sync = lambda: moments.append((told[-1], disk.left()))
        trainer = _trainer(learner_model, alone)
        writer = CheckpointWriter(
            directory=tmp_path / "run" / "checkpoints", keep=2, background=background, ranks=alone
        )
        for _ in range(4):
            _step_and_save(trainer, writer)
            told.append(trainer.step)
            moments.append((told[-1], disk.left()))
        disk.close()
    assert len(moments) > 20, "this shows something"
    for number, (newest, left) in enumerate(moments):
        put_back(left, tmp_path / str(number))
        found = checkpoint.choose("auto", directory=tmp_path / str(number) / "run" / "checkpoints")
        assert (0 if found is None else step_of(found)) >= newest
    checkpoint.load(_trainer(learner_model, alone), found or tmp_path)


def test_a_checkpoint_from_before_the_first_update_that_counted_can_be_gone_on_from(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    skipped = _job(until=1, poisoned=True, groups=2, save=str(tmp_path))
    run_job(learner_model, skipped, alone)
    resumed = _trainer(learner_model, alone)
    checkpoint.load(resumed, tmp_path / "step-1")
    straight = _trainer(learner_model, alone)
    straight.step = 1
    for trainer in (resumed, straight):
        trainer.train(_batch(1))
    for ours, theirs in zip(resumed.policy.parameters(), straight.policy.parameters(), strict=True):
        assert torch.equal(ours.full_tensor(), theirs.full_tensor())  # type: ignore[attr-defined]


def test_a_checkpoint_of_adapters_holds_nothing_else_and_is_gone_on_from_bit_for_bit(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    lora = {"config": {"learner": SCHEDULE, "run": {"total_steps": 12}, "model": {"lora_rank": 2}}}
    straight = run_job(learner_model, _job(until=6, save=str(tmp_path), save_at=3, **lora), alone)
    resumed = run_job(learner_model, _job(until=6, load=str(tmp_path / "step-3"), **lora), alone)
    assert np.array_equal(straight["weights"], resumed["weights"])
    held = FileSystemReader(tmp_path / "step-3").read_metadata().state_dict_metadata
    weights = [name for name in held if name.startswith("model.")]
    assert weights
    assert all(".lora_" in name for name in weights)


def _job(**facts: Any) -> dict[str, Any]:
    return {"groups": 6, "n": 3, "config": {"learner": SCHEDULE, "run": {"total_steps": 12}}, **facts}


def _trainer(model: Path, ranks: Ranks) -> Trainer:
    config = make_config(model, learner=SCHEDULE, run={"total_steps": 12})
    policy = load_policy(config, ranks)
    return Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)


def _batch(step: int) -> Batch:
    return make_batch(step=step, groups=6, n=3)


def _step_and_save(trainer: Trainer, writer: CheckpointWriter) -> None:
    trainer.train(_batch(trainer.step))
    assert writer.begin(trainer, CheckpointState(step=trainer.step, lineage="a")).result() is not None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
