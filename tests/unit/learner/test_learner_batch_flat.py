"""A batch survives its flat form, in memory and on disk."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.learner.batches.batch import Batch
from services.learner.batches.batch_flat import flatten, read_batch, rebuild, write_batch
from tests.unit.learner.learner_cases import make_batch, make_episodes


def _assert_same(ours: Batch, theirs: Batch) -> None:
    assert (ours.step, ours.digest) == (theirs.step, theirs.digest)
    assert [group.group_id for group in ours.groups] == [group.group_id for group in theirs.groups]
    assert ours.group_sizes == theirs.group_sizes
    for our, their in zip(ours.sequences, theirs.sequences, strict=True):
        for name, value in dataclasses.asdict(our).items():
            np.testing.assert_array_equal(value, getattr(their, name), err_msg=name)


def test_a_batch_of_ragged_groups_is_rebuilt_exactly() -> None:
    batch = make_batch(step=3, groups=4, n=3)
    ids = [group.group_id for group in batch.groups]
    _assert_same(rebuild(flatten(batch), step=3, digest=batch.digest, group_ids=ids), batch)


@pytest.mark.parametrize("make", [make_batch, make_episodes])
def test_a_batch_on_disk_is_read_back_exactly(tmp_path: Path, make: Callable[..., Batch]) -> None:
    batch = make(step=7)
    write_batch(batch, tmp_path / "batch.npz")
    _assert_same(read_batch(tmp_path / "batch.npz"), batch)


def test_a_file_of_an_earlier_version_is_read_under_its_own_names(tmp_path: Path) -> None:
    batch = make_batch()
    write_batch(batch, tmp_path / "now.npz")
    with np.load(tmp_path / "now.npz") as stored:
        known = [name for name in stored if name not in ("observed", "continues")]
        arrays = {name.replace("rollout_logprobs", "behaviour_logprobs"): stored[name] for name in known}
    np.savez(tmp_path / "then.npz", **arrays)
    _assert_same(read_batch(tmp_path / "then.npz"), batch)
