"""The pair that NCCL uses, over gloo on a CPU: two slots, operations that are asked and not waited for, a limit of its own.

Both ends are in this process, in threads. Delays are injected between a backend that is done and a pair that is told so, which
is where the stream of a GPU stands.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

from sluice.errors import TransferError
from sluice.weights.backends import Rendezvous, TransferStore, join
from sluice.weights.flights import DEPTH, receive, send
from sluice.weights.gloo_group import GlooGroup
from sluice.weights.staged_group import StagedGroup

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

SIZES = [4 << 20] * 5 + [12_345]
"""Of buckets in bytes: longer than what sockets hold, so that a sender waits for its receiver."""

LIMIT_S = 20.0


class Slow:
    """A process group that says of each operation so many times that it is not over, and has no limit of its own."""

    def __init__(self, group: Any, *, refusals: int) -> None:
        self.group, self.refusals = group, refusals
        self.aborted = 0
        self.under_way = self.most = 0

    def broadcast(self, tensors: list[torch.Tensor], options: Any) -> "SlowWork":
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        options.timeout = timedelta(seconds=LIMIT_S)
        return SlowWork(self, self.group.broadcast(tensors, options))

    def abort(self) -> None:
        self.aborted += 1


class SlowWork:
    def __init__(self, slow: Slow, work: Any) -> None:
        self.slow, self.work, self.left = slow, work, slow.refusals

    def is_completed(self) -> bool:
        self.left -= 1
        return self.left < 0 and self.work.is_completed()

    def wait(self) -> None:
        self.slow.under_way -= 1
        self.work.wait()


class Pair:
    """A sender and a receiver of one epoch, each as gloo's group and as a staged one."""

    def __init__(self, store: TransferStore, pool: ThreadPoolExecutor, epoch: str, *, limit_s: float = LIMIT_S) -> None:
        self.pool = pool
        self.gloo: list[Any] = [end.result() for end in [pool.submit(joined, store, epoch, rank) for rank in (0, 1)]]
        self.slow = [Slow(end.group, refusals=20) for end in self.gloo]
        self.sender, self.receiver = (
            StagedGroup(slow, epoch=epoch, rank=rank, device=torch.device("cpu"), limit_s=limit_s)
            for rank, slow in enumerate(self.slow)
        )

    def sends(self) -> "Future[None]":
        return self.pool.submit(send, self.sender, buckets())

    def leave(self) -> None:
        """The receiver dies: its sockets close."""
        self.slow[1].group = None
        self.gloo[1].close()


def joined(store: TransferStore, epoch: str, rank: int) -> Any:
    where = Rendezvous(
        host="127.0.0.1", port=store.port, secret="s", epoch=epoch, rank=rank, world_size=2, timeout_s=LIMIT_S
    )
    return join(where, backend="gloo")


def buckets() -> Iterator[np.ndarray]:
    for number, size in enumerate(SIZES):
        yield np.random.default_rng(number).integers(0, 255, size, np.uint8)


def arrives(group: StagedGroup | GlooGroup) -> bool:
    """Whether all buckets come over the group's other end."""
    came = [part.copy() for part in receive(group, (np.zeros(size, np.uint8) for size in SIZES))]
    return all(np.array_equal(part, sent) for part, sent in zip(came, buckets(), strict=True))


@pytest.fixture(scope="module")
def store() -> TransferStore:
    return TransferStore(bind="127.0.0.1")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def test_buckets_arrive_whole_and_in_order_with_two_under_way_at_most(
    store: TransferStore, pool: ThreadPoolExecutor
) -> None:
    pair = Pair(store, pool, "whole")
    connecting = [pool.submit(end.connect, limit_s=LIMIT_S) for end in (pair.sender, pair.receiver)]
    assert [end.result() for end in connecting] == [None, None]
    for end in (pair.receiver, pair.gloo[1]):  # the same bytes on the wire
        sending = pair.sends()
        assert arrives(end)
        sending.result()
    assert [slow.most for slow in pair.slow] == [DEPTH, DEPTH]
    pair.sender.rest()  # between two versions
    sending = pair.sends()
    assert arrives(pair.receiver)
    sending.result()
    assert [slow.aborted for slow in pair.slow] == [0, 0]


def test_a_receiver_that_is_stuck_delays_neither_training_nor_another_receiver(
    store: TransferStore, pool: ThreadPoolExecutor
) -> None:
    stuck, well = Pair(store, pool, "stuck"), Pair(store, pool, "well")
    hanging = stuck.sends()  # its receiver takes nothing
    weights = torch.ones(64, 64)
    for _ in range(3):
        weights = weights @ weights / 64  # a step
        sending = well.sends()
        assert arrives(well.receiver)
        sending.result()
    assert weights.sum() == 64 * 64
    assert not hanging.done()
    stuck.leave()
    with pytest.raises(TransferError, match="epoch stuck"):
        hanging.result()
    assert stuck.slow[0].aborted == 1
    with pytest.raises(TransferError, match="failed before"):
        stuck.sender.broadcast(np.zeros(1, np.uint8))


def test_an_operation_that_is_not_over_at_its_limit_ends_the_pair_and_nothing_else(
    store: TransferStore, pool: ThreadPoolExecutor
) -> None:
    pair = Pair(store, pool, "late", limit_s=0.2)
    with pytest.raises(TransferError, match=r"epoch late: an operation was not over after 0\.2 s"):
        send(pair.sender, buckets())
    assert (pair.slow[0].aborted, pair.slow[0].most) == (1, DEPTH)
    pair.sender.close()
    assert pair.slow[0].aborted == 1
    fresh = Pair(store, pool, "fresh")  # the next epoch of the same two
    sending = fresh.sends()
    assert arrives(fresh.receiver)
    sending.result()
    pair.leave()
