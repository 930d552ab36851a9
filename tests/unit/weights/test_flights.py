"""Two buckets are under way at a time, in order, and none is left behind: against a group that keeps a diary."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.weights.flights import receive, send


@dataclass
class Group:
    fails_at: int = -1
    diary: list[str] = field(default_factory=list)
    started: int = 0

    def start(self, data: np.ndarray) -> "Landing":
        self.started += 1
        self.diary.append(f"start {self.started - 1}")
        return Landing(self, self.started - 1)


@dataclass
class Landing:
    group: Group
    number: int

    def wait(self) -> None:
        self.group.diary.append(f"end {self.number}")
        if self.number >= self.group.fails_at >= 0:
            raise TransferError(f"bucket {self.number}")


def parts(count: int) -> Iterator[np.ndarray]:
    for number in range(count):
        yield np.full(1, number, np.uint8)


def test_a_bucket_is_on_its_way_while_the_former_one_is_used() -> None:
    group = Group()
    for part in receive(group, parts(4)):
        group.diary.append(f"use {part[0]}")
    order = "start 0, start 1, end 0, use 0, start 2, end 1, use 1, start 3, end 2, use 2, end 3, use 3"
    assert group.diary == order.split(", ")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_sender_returns_when_every_bucket_has_gone(count: int) -> None:
    group = Group()
    send(group, parts(count))
    assert sorted(group.diary) == sorted(f"{what} {number}" for what in ("start", "end") for number in range(count))


def test_a_failure_is_told_when_the_bucket_behind_it_is_over_too() -> None:
    group = Group(fails_at=1)
    with pytest.raises(TransferError, match="bucket 1"):
        send(group, parts(9))
    assert group.diary[-2:] == ["end 1", "end 2"]
    assert group.started == 3


def test_whoever_breaks_off_waits_for_what_is_under_way() -> None:
    group = Group()
    with closing(receive(group, parts(9))) as arriving:
        next(arriving)
    assert group.diary == ["start 0", "start 1", "end 0", "end 1"]

    def source() -> Iterator[np.ndarray]:
        yield from parts(1)
        raise TransferError("the source has failed")

    group = Group()
    with pytest.raises(TransferError, match="source"):
        send(group, source())
    assert group.diary == ["start 0", "end 0"]
