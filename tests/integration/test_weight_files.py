"""Weights by files in a shared directory: which ones stay, and what a disk without room costs."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sluice.errors import Unavailable
from sluice.weights.receiver import WeightReceiver
from sluice.weights.sender import KEPT_VERSIONS, WeightSender
from tests.integration.weight_cases import random_snapshot
from tests.small_disk import disk_of

pytestmark = pytest.mark.integration


def opened_path(sender: WeightSender, rollout_id: str, number: int) -> Path:
    """Publishes a version and tells one rollout of it."""
    sender.publish(random_snapshot(number))
    return Path(sender.open(rollout_id=rollout_id, epoch="", timeout_s=1.0).file_path)


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[WeightSender]:
    made = WeightSender(backend="file", host="127.0.0.1", directory=tmp_path)
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 10 MiB: room for two snapshots."""
    with disk_of(tmp_path / "small", size_bytes=10 << 20) as folder:
        yield folder


def test_only_what_somebody_may_still_read_stays(sender: WeightSender, tmp_path: Path) -> None:
    for number in range(4):
        paths = {opened_path(sender, name, number) for name in ("one", "other")}
        assert set(tmp_path.iterdir()) == paths


def test_a_file_that_an_earlier_learner_left_torn_is_written_again(sender: WeightSender, tmp_path: Path) -> None:
    """After a power failure: weights are not synced, because a learner that starts again publishes them again."""
    whole = opened_path(sender, "one", 0).read_bytes()
    opened_path(sender, "one", 0).write_bytes(b"\0" * len(whole))
    again = WeightSender(backend="file", host="127.0.0.1", directory=tmp_path)
    for rollout in ("one", "other"):
        assert opened_path(again, rollout, 0).read_bytes() == whole
    again.close()


def test_the_file_of_a_slow_reader_stays_until_it_asks_again_or_is_forgotten(
    sender: WeightSender, tmp_path: Path
) -> None:
    told = opened_path(sender, "slow", 0)
    for number in range(1, KEPT_VERSIONS):
        opened_path(sender, "quick", number)
        assert told.exists()
    receiver = WeightReceiver()
    receiver.begin(epoch="", manifest=random_snapshot(0).manifest, file_path=str(told))
    np.testing.assert_array_equal(receiver.result(timeout_s=10.0).buffer, random_snapshot(0).buffer)
    receiver.close()
    opened_path(sender, "quick", KEPT_VERSIONS)
    assert not told.exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_former_learner_leaves_nothing_behind(sender: WeightSender, tmp_path: Path) -> None:
    former = WeightSender(backend="file", host="127.0.0.1", directory=tmp_path)
    opened_path(former, "r", 0)
    (tmp_path / f"a1-0.{os.getpid()}.tmp").write_bytes(b"half")
    newest = opened_path(sender, "r", 1)
    assert set(tmp_path.iterdir()) == {newest}
    former.close()


@pytest.mark.needs("tmpfs")
def test_a_full_disk_costs_that_push_and_the_next_one_works(small_disk: Path) -> None:
    sender = WeightSender(backend="file", host="127.0.0.1", directory=small_disk)
    first = opened_path(sender, "r", 0)
    (small_disk / "foreign").write_bytes(b"\0" * (4 << 20))
    with pytest.raises(Unavailable, match=r"version a1 could not be written .* make room in"):
        opened_path(sender, "other", 1)
    assert set(small_disk.iterdir()) == {first, small_disk / "foreign"}
    (small_disk / "foreign").unlink()
    assert opened_path(sender, "other", 1).exists()
    sender.close()
