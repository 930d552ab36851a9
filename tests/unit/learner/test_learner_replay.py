"""Which steps of a run can be trained again, from where, and what counts as the same."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.learner.checkpoint import folders
from services.learner.replay.recorded_steps import RecordedStep, batch_body, recorded_steps
from services.learner.replay.starting_point import starting_point
from services.learner.replay.step_comparison import Replayed, compare
from sluice.errors import ConfigError, NotFound, SluiceError
from sluice.run_dir.batch_file import batch_path

LINE: dict[str, Any] = {"kind": "step", "lineage": "a", "weights_digest": "w", "batch_digest": "b", "loss/policy": 0.5}


def _run(folder: Path, *, checkpoints: Sequence[int], batches: Sequence[int], damaged: Sequence[int] = ()) -> Path:
    (folder / "batches").mkdir()
    for step in batches:
        batch_path(folder, step).write_bytes(b"groups")
    for step in checkpoints:
        partial = folders.partial_of(folder / "checkpoints", step)
        folders.begin(partial)
        (partial / "shard").write_bytes(b"tensors")
        path = folders.seal(partial, step)
        if step in damaged:
            (path / "shard").write_bytes(b"torn")
    return folder


@pytest.mark.parametrize(
    ("step", "checkpoint", "first"),
    [(4, "step-4", 4), (5, "step-4", 4), (6, "step-6", 6), (7, "step-6", 6), (0, None, 0), (3, None, 0)],
)
def test_the_newest_checkpoint_not_after_the_step_is_taken_else_the_base_model(
    tmp_path: Path, step: int, checkpoint: str | None, first: int
) -> None:
    run = _run(tmp_path, checkpoints=[4, 6], batches=range(8))
    start = starting_point(run, step, recorded=range(8))
    assert (start.first, start.checkpoint and start.checkpoint.name) == (first, checkpoint)


def test_a_checkpoint_that_does_not_verify_is_passed_over_for_an_older_one(tmp_path: Path) -> None:
    run = _run(tmp_path, checkpoints=[4, 6], batches=range(4, 8), damaged=[6])
    start = starting_point(run, 7, recorded=range(8))
    assert (start.first, str(start)) == (4, "step-4")


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (3, "step 3: {batches}/step-000003.groups is not there; steps that can be replayed: 4 to 6, 8 to 9"),
        (7, "step 7: {batches}/step-000007.groups is not there; steps that can be replayed: 4 to 6, 8 to 9"),
        (10, "step 10: metrics.jsonl has no line of it with digests; steps that can be replayed: 4 to 6, 8 to 9"),
        (99, "step 99: {batches}/step-000099.groups is not there; steps that can be replayed: 4 to 6, 8 to 9"),
    ],
)
def test_what_is_missing_is_named_with_the_steps_that_can_be_replayed(tmp_path: Path, step: int, said: str) -> None:
    run = _run(tmp_path, checkpoints=[4, 8], batches=[4, 5, 6, 8, 9, 10])
    with pytest.raises(NotFound) as refused:
        starting_point(run, step, recorded=range(10))
    assert str(refused.value) == said.format(batches=run / "batches")


def test_a_gap_between_checkpoint_and_step_and_a_run_without_any_start_are_told_apart(tmp_path: Path) -> None:
    run = _run(tmp_path, checkpoints=[4], batches=[4, 6, 7])
    with pytest.raises(NotFound, match=r"^step 7: would have to start from step-4, and not all of batches 4 to 7 are"):
        starting_point(run, 7, recorded=range(9))
    (run / "checkpoints" / "step-4" / "shard").unlink()
    with pytest.raises(NotFound) as refused:
        starting_point(run, 7, recorded=range(9))
    assert "start from model.path, since no checkpoint before it verifies" in str(refused.value)
    assert str(refused.value).endswith("; no step of this run can be replayed")


def test_steps_that_were_rolled_back_are_replayed_as_they_were_trained_again_or_not_at_all(tmp_path: Path) -> None:
    lines = [
        *({**LINE, "step": step} for step in range(4)),
        {"kind": "rollback", "to": 2, "lineage": "b"},
        {**LINE, "step": 2, "lineage": "b", "weights_digest": "other"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = recorded_steps(tmp_path)
    assert {step: (one.lineage, one.weights_digest) for step, one in found.items()} == {
        0: ("a", "w"),
        1: ("a", "w"),
        2: ("b", "other"),
    }


def test_the_last_line_of_a_step_counts_and_lines_without_digests_do_not(tmp_path: Path) -> None:
    older = {name: value for name, value in LINE.items() if name != "batch_digest"}
    lines = [
        {**LINE, "step": 3},
        {**LINE, "step": 3, "weights_digest": "again", "loss/policy": 0.25},
        {**older, "step": 2},
        {"kind": "eval", "version": 4},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = recorded_steps(tmp_path)
    assert found.keys() == {3}
    assert (found[3].weights_digest, found[3].metrics) == ("again", {"loss/policy": 0.25})
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ConfigError, match="must be the directory of a run"):
        recorded_steps(tmp_path)


def test_a_batch_file_that_is_gone_or_changed_is_refused(tmp_path: Path) -> None:
    run = _run(tmp_path, checkpoints=[], batches=[3])
    with pytest.raises(SluiceError, match=r"is not what was trained: its digest is .*, the run recorded b$"):
        batch_body(run, _recorded())
    batch_path(run, 3).unlink()
    with pytest.raises(NotFound, match="cannot be read: No such file"):
        batch_body(run, _recorded())


def _recorded(**metrics: float) -> RecordedStep:
    return RecordedStep(step=3, lineage="a", weights_digest="w" * 64, batch_digest="b", metrics=metrics)


def _replayed(
    *, weights: str = "w" * 64, ranks: int = 1, context: int = 1, device: str = "cpu", **metrics: float
) -> Replayed:
    return Replayed(metrics=metrics, weights_digest=weights, ranks=ranks, device=device, context=context)


@pytest.mark.parametrize(("apart", "same"), [(0.0, True), (5e-7, True), (2e-6, False), (math.nan, False)])
@pytest.mark.parametrize("loss", [0.5, -1e-5])
def test_the_loss_decides_by_its_relative_difference(loss: float, apart: float, same: bool) -> None:
    found = compare(_recorded(**{"loss/policy": loss}), _replayed(**{"loss/policy": loss * (1 + apart)}), run_ranks=1)
    assert found.differs == ([] if same else ["loss/policy by more than 1e-06 of it"])


def test_other_weights_count_on_a_cpu_with_the_runs_ranks_and_are_explained_elsewhere() -> None:
    recorded = _recorded(**{"loss/policy": 0.5})
    other: dict[str, Any] = {"weights": "x" * 64, "loss/policy": 0.5}
    here = compare(recorded, _replayed(**other), run_ranks=1)
    assert (here.differs, here.notes) == (["the weights"], [])
    for elsewhere in ({"device": "cuda"}, {"ranks": 2}, {"context": 2}):
        found = compare(recorded, _replayed(**other, **elsewhere), run_ranks=1)
        assert found.differs == []
        assert found.notes[0].startswith("weights are not compared")


def test_a_step_in_which_nothing_was_trained_is_the_same_when_nothing_is_again() -> None:
    assert compare(_recorded(), _replayed(), run_ranks=1).differs == []
    assert compare(_recorded(), _replayed(**{"loss/policy": 0.5}), run_ranks=1).differs != []


def test_the_table_has_what_the_learner_computes_and_no_times() -> None:
    figures = {"loss/policy": 0.5, "learner/updates": 2.0, "learner/train_s": 1.0, "learner/tokens_per_s": 9.0}
    recorded = _recorded(**figures, **{"loss/entropy_nats": 1.0, "step/wall_s": 3.0, "queue/groups": 4.0})
    table = compare(recorded, _replayed(**figures | {"learner/updates": 1.0}), run_ranks=1).table
    assert [line.split() for line in table] == [
        ["metric", "recorded", "replayed", "difference"],
        ["learner/updates", "2", "1", "5.0e-01"],
        ["loss/entropy_nats", "1", "–", "–"],
        ["loss/policy", "0.5", "0.5", "0"],
        ["weights", "w" * 12, "w" * 12, "0"],
    ]
