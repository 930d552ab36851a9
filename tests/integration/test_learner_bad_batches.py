"""What a learner does with a batch that it cannot train as it is: it keeps it, says so, and stops where it should."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.learner.batches.batch import Batch, TrainGroup
from services.learner.batches.batch_flat import read_batch
from services.learner.distributed.ranks import Ranks
from services.learner.rank_worker import Worker
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from tests.unit.learner.learner_cases import make_batch, make_config, poisoned

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def _worker(model: Path, run_dir: Path, ranks: Ranks, **sections: dict[str, Any]) -> Worker:
    run_dir.mkdir()
    return Worker(config=make_config(model, **sections), ranks=ranks, run_dir=run_dir)


def test_a_batch_whose_update_is_not_finite_is_kept_as_it_was_and_the_next_one_is_trained(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    worker = _worker(learner_model, tmp_path / "run", alone)
    bad = poisoned(make_batch(step=0))
    assert worker.train(bad)["learner/skipped_updates"] == 1
    assert worker.train(make_batch(step=1))["learner/updates"] == 1
    kept = list((tmp_path / "run" / "nonfinite").iterdir())
    assert [path.name for path in kept] == ["step-0.npz"]
    found = read_batch(kept[0])
    assert (found.step, found.digest) == (bad.step, bad.digest)
    assert [group.group_id for group in found.groups] == [group.group_id for group in bad.groups]
    assert found.group_sizes == bad.group_sizes
    for ours, theirs in zip(found.sequences, bad.sequences, strict=True):
        for field in dataclasses.fields(theirs):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)


def test_a_disk_that_does_not_take_the_bad_batch_does_not_end_the_run(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    worker = _worker(learner_model, tmp_path / "run", alone)
    (tmp_path / "run" / "nonfinite").write_text("not a folder")
    assert worker.train(poisoned(make_batch(step=0)))["learner/skipped_updates"] == 1
    assert worker.step == 1


def test_max_skipped_updates_in_a_row_end_the_learner_and_a_good_one_between_them_does_not_count(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    worker = _worker(learner_model, tmp_path / "run", alone, learner={"max_skipped_updates": 2})
    worker.train(poisoned(make_batch(step=0)))
    worker.train(make_batch(step=1))
    worker.train(poisoned(make_batch(step=2)))
    with pytest.raises(SluiceError) as stopped:
        worker.train(poisoned(make_batch(step=3)))
    assert str(stopped.value) == (
        "step 3: 2 updates in a row (learner.max_skipped_updates) had a loss or gradient that is not finite; the last "
        "loss is nan, and nonfinite/ in the run directory has the batches"
    )
    kept = sorted(path.name for path in (tmp_path / "run" / "nonfinite").iterdir())
    assert kept == ["step-0.npz", "step-2.npz", "step-3.npz"]


def test_a_device_without_memory_ends_the_learner_and_the_message_names_the_setting_to_lower(
    learner_model: Path, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = _worker(learner_model, tmp_path / "run", alone, learner={"max_tokens_per_micro_batch": 48})

    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")  # a CPU never raises it

    monkeypatch.setattr(torch.optim.AdamW, "step", no_memory)
    with pytest.raises(SluiceError, match=r"^step 0: rank 0 .* lower learner\.max_tokens_per_micro_batch \(now 48\)"):
        worker.train(make_batch(step=0))


@pytest.mark.parametrize("proximal", ["rollout", "recompute"])
def test_a_batch_in_which_nothing_is_trained_changes_no_weight_and_the_next_one_is_trained(
    learner_model: Path, alone: Ranks, tmp_path: Path, proximal: str
) -> None:
    algorithm = {"overlong_filtering": True, "proximal": proximal}
    worker = _worker(learner_model, tmp_path / "run", alone, algorithm=algorithm, coordinator={"max_staleness": 0})
    before = _weights(worker)
    metrics = worker.train(_all_truncated(make_batch(step=0)))
    assert (metrics["learner/updates"], metrics["learner/trained_tokens"]) == (0, 0)
    assert np.array_equal(_weights(worker), before)
    assert worker.train(make_batch(step=1))["learner/updates"] == 1
    assert not np.array_equal(_weights(worker), before)


def _weights(worker: Worker) -> np.ndarray:
    snapshot = worker.gather(PolicyVersion(lineage="a", number=worker.step))
    assert snapshot is not None
    return snapshot.buffer.copy()


def _all_truncated(batch: Batch) -> Batch:
    groups = [
        TrainGroup(
            group_id=group.group_id,
            sequences=tuple(dataclasses.replace(sequence, truncated=True) for sequence in group.sequences),
        )
        for group in batch.groups
    ]
    return dataclasses.replace(batch, groups=tuple(groups))
