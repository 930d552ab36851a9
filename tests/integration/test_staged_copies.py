"""One staged copy a machine: who may map it, what nobody can do to it, and what is left when its processes are killed."""

import contextlib
import mmap
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.process.child import hide
from sluice.testing import assert_eventually_blocking
from sluice.weights import lending, staging
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import WeightSender
from tests.integration.weight_cases import join_opened, random_snapshot
from tests.integration.weight_processes import Process

pytestmark = pytest.mark.integration

BYTES = 3_000_001
DIGEST = "d" * 64
NOBODY, STRANGER = (65534, 65533) if os.geteuid() == 0 else (os.geteuid(), None)
"""Users without a privilege; only root can become another user, so only then there is a stranger."""


def become(user: int | None) -> None:
    """As a service: without root's rights, and hidden from other processes."""
    if user is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    hide()


def _hold(pipe: Connection) -> None:
    """Lends a copy full of the number that it is told, again and again."""
    become(NOBODY)
    buffer = staging.new(BYTES)
    while True:
        order = pipe.recv()
        if order == "reclaim":
            pipe.send(staging.reclaim(buffer))
        elif order == "new":
            buffer = staging.new(BYTES)
            pipe.send("")
        else:
            buffer[:] = order
            pipe.send(lending.lend(buffer, digest=DIGEST))


def _borrow_as_stranger(pipe: Connection) -> None:
    """One that does not mind whose memory it gets, so that only the holder can refuse."""
    become(STRANGER)
    lending._is_own_user = lambda _: True  # type: ignore[assignment]
    _borrow_orders(pipe)


def _borrow(pipe: Connection) -> None:
    become(NOBODY)
    _borrow_orders(pipe)


def _borrow_orders(pipe: Connection) -> None:
    """Borrows from a place, and tells of what the copy is full."""
    buffer = None
    while True:
        place = pipe.recv()
        try:
            if place:
                buffer = lending.borrow(place, total_bytes=BYTES, digest=DIGEST)
            assert buffer is not None
            pipe.send(sorted({int(buffer.min()), int(buffer.max())}))
        except TransferError as error:
            pipe.send(str(error))


class Asked(Process):
    """A process that takes orders as Python's objects."""

    def of(self, order: object) -> object:
        self._pipe.send(order)
        assert self._pipe.poll(30.0), "no answer in time"
        return self._pipe.recv()


@pytest.fixture
def start() -> Iterator[Callable[[Callable[[Connection], None]], Asked]]:
    with contextlib.ExitStack() as closing:

        def started(main: Callable[[Connection], None]) -> Asked:
            made = Asked(main)
            closing.callback(made.kill)
            return made

        yield started


def test_hidden_processes_of_one_user_share_a_copy_that_outlives_its_holder(
    start: Callable[[Callable[[Connection], None]], Asked],
) -> None:
    holder, first, second = start(_hold), start(_borrow), start(_borrow)
    place = holder.of(7)
    assert first.of(place) == second.of(place) == [7]
    assert holder.of("reclaim") is False, "two others still read it"
    assert first.of(place) == "a staged copy cannot be borrowed: its holder has gone on to another version"
    first.kill()
    assert holder.of("reclaim") is False, "one still does"
    holder.of("new")
    other = holder.of(8)
    assert second.of("") == [7], "what is lent does not change"
    if STRANGER is not None:
        assert "cannot be borrowed" in str(start(_borrow_as_stranger).of(other))
    assert start(_borrow).of(other) == [8]
    holder.kill()
    assert second.of("") == [7], "nor does it end with its holder"
    assert "its holder does not answer" in str(second.of(other))


def test_memory_comes_back_when_its_borrowers_are_dead(start: Callable[[Callable[[Connection], None]], Asked]) -> None:
    holder, borrower = start(_hold), start(_borrow)
    assert borrower.of(holder.of(1)) == [1]
    borrower.kill()
    assert holder.of("reclaim") is True
    assert start(_borrow).of(holder.of(2)) == [2]


def test_a_borrowed_copy_cannot_be_written_shortened_or_mistaken() -> None:
    buffer = staging.new(BYTES)
    assert not buffer.any()
    buffer[:] = 5
    place = lending.lend(buffer, digest=DIGEST)
    copy = lending.borrow(place, total_bytes=BYTES, digest=DIGEST)
    memory = staging.memory_of(copy)
    assert memory is not None
    assert lending.borrow(lending.lend(copy, digest=DIGEST), total_bytes=BYTES, digest=DIGEST)[-1] == 5, "it is lent on"
    with pytest.raises(ValueError, match="read-only"):
        copy[0] = 6
    with pytest.raises(OSError):
        os.ftruncate(memory.fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    assert not staging.reclaim(copy), "it is another's"
    for size, digest, rule in (
        (BYTES, "e" * 64, "the digest beside a staged copy is dddddddddddddddd"),
        (BYTES + mmap.PAGESIZE, DIGEST, "is lent as memory of"),
    ):
        with pytest.raises(TransferError, match=rule):
            lending.borrow(place, total_bytes=size, digest=digest)
    for wrong in ("/etc/passwd", "", place + "0", "sluice-../../etc:" + "0" * 32):
        with pytest.raises(TransferError, match="must be NAME:TOKEN"):
            lending.borrow(wrong, total_bytes=BYTES, digest=DIGEST)
    with pytest.raises(TransferError, match="gone on to another version"):
        lending.borrow(place[:-1] + ("0" if place[-1] != "0" else "1"), total_bytes=BYTES, digest=DIGEST)
    with open(__file__, "rb") as file, pytest.raises(TransferError, match="is lent as memory of"):
        staging.map_borrowed(os.dup(file.fileno()), total_bytes=BYTES, digest=DIGEST)


def test_somebody_who_asks_and_says_nothing_keeps_nobody_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "TOKEN_S", 0.2)
    buffer = staging.new(BYTES)
    place = lending.lend(buffer, digest=DIGEST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.connect("\0" + place.partition(":")[0])
        assert lending.borrow(place, total_bytes=BYTES, digest=DIGEST).size == BYTES


def test_a_second_rollout_maps_what_the_first_one_has_and_nothing_is_sent(sender: WeightSender) -> None:
    first, second, alone = WeightReceiver(shares=True), WeightReceiver(shares=True), WeightReceiver()

    def push(receiver: WeightReceiver, name: str) -> Received:
        snapshot = sender.newest
        assert snapshot is not None
        opened = sender.open(rollout_id=name, epoch=name, timeout_s=5.0)
        if opened.new_epoch:
            join_opened(receiver, opened, name)
        receiver.begin(epoch=name, manifest=opened.manifest, payload=opened.payload)
        received = receiver.result(timeout_s=10.0)
        np.testing.assert_array_equal(received.buffer, snapshot.buffer)
        assert received.digest == snapshot.manifest.digest
        receiver.recycle(received)
        return received

    kept = []
    for snapshot in map(random_snapshot, range(3)):
        sender.publish(snapshot)
        mine = push(first, "first")
        kept.append((snapshot.buffer, push(second, "second").buffer))
        assert inode(mine.buffer) == inode(kept[-1][1]), "the same memory"
        assert inode(push(alone, "alone").buffer) != inode(mine.buffer)
    for sent, held in kept:  # what was borrowed stays as it was, whatever its holder did since
        np.testing.assert_array_equal(sent, held)
    for receiver in (first, second, alone):
        receiver.close()


def test_a_copy_is_found_by_its_bytes_until_its_holder_writes_again_or_drops_it() -> None:
    digest = secrets.token_hex(32)
    assert lending.find(digest, total_bytes=BYTES) is None
    first, second = staging.new(BYTES), staging.new(BYTES)
    for buffer in (first, second, first):
        lending.announce(buffer, digest=digest)  # the second one does nothing
    found = lending.find(digest, total_bytes=BYTES)
    assert found is not None
    assert inode(found) == inode(first)
    assert lending.find(digest, total_bytes=BYTES + mmap.PAGESIZE) is None, "not what was announced to have this digest"
    del found
    assert_eventually_blocking(lambda: staging.reclaim(first), what="the holder's thread has closed what it sent")
    assert lending.find(digest, total_bytes=BYTES) is None
    lending.announce(second, digest=digest)
    assert lending.find(digest, total_bytes=BYTES) is not None
    del second, buffer
    assert lending.find(digest, total_bytes=BYTES) is None
    lending.announce(np.zeros(BYTES, np.uint8), digest=digest)  # memory that cannot be lent
    assert lending.find(digest, total_bytes=BYTES) is None


def inode(buffer: np.ndarray) -> int:
    memory = staging.memory_of(buffer)
    assert memory is not None
    return os.stat(f"/proc/self/fd/{memory.fd}").st_ino
