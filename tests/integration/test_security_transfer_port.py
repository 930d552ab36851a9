"""A stranger on the port where weights are arranged: what it sees, and that versions arrive whole, or fail and are retried."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import numpy as np
import pytest
import torch.distributed as dist

from sluice.errors import TransferError
from sluice.testing import assert_eventually_blocking
from sluice.weights.authentication import prove
from sluice.weights.backends import Rendezvous
from sluice.weights.gloo_group import GlooGroup
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import OpenedTransfer, WeightSender
from tests.integration.weight_cases import join_opened, random_snapshot

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

GARBAGE = {
    "nothing": b"",
    "random": os.urandom(1 << 16),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeros": bytes(4096),
    "a key of 2^60 bytes": b"\x00" + struct.pack("<Q", 1 << 60),
    "every query with a length that never comes": b"".join(
        bytes([query]) + struct.pack("<Q", 1 << 20) for query in range(20)
    ),
}


def push(sender: WeightSender, receiver: WeightReceiver, number: int) -> Received:
    """A version as the coordinator pushes it: a failure costs the epoch, and the next one is a fresh one."""
    sender.publish(random_snapshot(number))
    for attempt in range(3):
        epoch = f"{number}-{attempt}"
        opened = sender.open(rollout_id="r", epoch=epoch, timeout_s=5.0)
        try:
            join_opened(receiver, opened, epoch)
            receiver.begin(epoch=epoch, manifest=opened.manifest, payload=opened.payload)
            return receiver.result(timeout_s=10.0)
        except TransferError:
            continue
    raise AssertionError("three epochs failed")


def receive(receiver: WeightReceiver, opened: OpenedTransfer) -> Received:
    join_opened(receiver, opened, "spoilt", timeout_s=1.0)
    receiver.begin(epoch="spoilt", manifest=opened.manifest, payload=opened.payload)
    return receiver.result(timeout_s=10.0)


@contextmanager
def connections(port: int, count: int, data: bytes) -> Iterator[None]:
    """Strangers that have connected, written, and stay."""
    with ExitStack() as held:
        for _ in range(count):
            stranger = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5.0))
            write(stranger, data)
        yield


def write(stranger: socket.socket, data: bytes) -> None:
    stranger.settimeout(2.0)
    try:
        stranger.sendall(data)
    except OSError:  # the store has hung up on it, which is its right
        return


def test_versions_arrive_whole_while_strangers_write_garbage(sender: WeightSender, receiver: WeightReceiver) -> None:
    assert push(sender, receiver, 0).manifest.version.number == 0
    port = sender.open(rollout_id="other", epoch="o", timeout_s=1.0).store_port
    for number, (what, garbage) in enumerate(GARBAGE.items(), 1):
        with connections(port, 20, garbage):
            received = push(sender, receiver, number)
        assert received.digest == received.manifest.digest, what
        np.testing.assert_array_equal(received.buffer, random_snapshot(number).buffer, what)


def test_strangers_that_come_and_go_during_a_transfer_change_nothing(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    push(sender, receiver, 0)
    port = sender.open(rollout_id="other", epoch="o", timeout_s=1.0).store_port
    over = threading.Event()

    def bother() -> None:
        while not over.is_set():
            for data in GARBAGE.values():
                with connections(port, 2, data):
                    pass

    thread = threading.Thread(target=bother)
    thread.start()
    try:
        versions = [push(sender, receiver, number).manifest.version.number for number in range(1, 6)]
    finally:
        over.set()
        thread.join(30.0)
    assert versions == [1, 2, 3, 4, 5]


def test_a_stranger_that_speaks_the_stores_language_finds_no_key_without_the_secret(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="e", timeout_s=5.0)
    stranger = dist.TCPStore("127.0.0.1", opened.store_port, None, is_master=False, timeout=timedelta(seconds=0.3))
    assert not stranger.check([f"sluice/guess/e/{name}" for name in ("0", "rank_0", "store_based_barrier_key")])
    for name in ("0", "1", "rank_0", "rank_1"):
        stranger.set(f"sluice/guess/e/{name}", b"poison")
        stranger.set(name, b"poison")
    join_opened(receiver, opened, "e")
    receiver.begin(epoch="e", manifest=opened.manifest, payload=opened.payload)
    np.testing.assert_array_equal(receiver.result(timeout_s=10.0).buffer, random_snapshot(1).buffer)


def test_no_secret_is_in_the_store_and_the_addresses_leave_it_when_the_two_ends_have_met(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="e", timeout_s=5.0)
    stranger = dist.TCPStore("127.0.0.1", opened.store_port, None, is_master=False, timeout=timedelta(seconds=3.0))
    names = seen(stranger, count=1)
    texts = [name.encode() for name in names] + [stranger.get(name) for name in names]
    assert not any(opened.secret.encode() in text for text in texts)
    join_opened(receiver, opened, "e")
    assert_eventually_blocking(lambda: not seen(stranger, count=0), within_s=5.0)


@pytest.mark.parametrize(
    "how", [lambda value: b"poison", lambda value: value[:32] + b"x" + value[33:], lambda value: b""]
)
def test_a_stranger_that_changes_the_addresses_in_the_store_spoils_one_epoch_and_is_never_called(
    sender: WeightSender, receiver: WeightReceiver, how: Callable[[bytes], bytes]
) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="spoilt", timeout_s=1.0)
    stranger = dist.TCPStore("127.0.0.1", opened.store_port, None, is_master=False, timeout=timedelta(seconds=3.0))
    for name in seen(stranger, count=1):
        stranger.set(name, how(stranger.get(name)))
    # The end that reads a changed address says so; the other one then waits in vain for an address of that end.
    with pytest.raises(TransferError, match=r"a stranger has changed an address|could not join over gloo"):
        join_opened(receiver, opened, "spoilt", timeout_s=1.0)
    assert push(sender, receiver, 2).manifest.version.number == 2


@pytest.mark.parametrize(("first", "other"), [("right", "guess"), ("guess", "right")])
def test_an_end_that_was_connected_without_the_secret_gets_no_weights_and_gives_none(first: str, other: str) -> None:
    """Both ends are in one group, as when a stranger was quicker to connect than the receiver."""
    meeting = dist.HashStore()

    def end(rank: int, secret: str) -> None:
        where = Rendezvous(host="127.0.0.1", port=1, secret=secret, epoch="e", rank=rank, world_size=2, timeout_s=2.0)
        group = GlooGroup.form(meeting, where)
        try:
            prove(group, secret=secret, epoch="e", rank=rank)
        finally:
            group.close()

    with ThreadPoolExecutor() as threads:
        ends = [threads.submit(end, rank, secret) for rank, secret in enumerate((first, other))]
    assert all(isinstance(one.exception(), TransferError) for one in ends)
    with ThreadPoolExecutor() as threads:
        meeting = dist.HashStore()
        assert [one.result() for one in [threads.submit(end, rank, "right") for rank in (0, 1)]] == [None, None]


def seen(store: dist.TCPStore, *, count: int) -> list[str]:
    """The names of transfers in the store, once there are `count`."""

    def names() -> list[str]:
        return [name for name in store.list_keys() if len(name) == 64]

    assert_eventually_blocking(lambda: len(names()) >= count, within_s=5.0)
    return names()


def test_a_stranger_that_guessed_the_secret_can_spoil_one_epoch_and_slip_in_no_weights(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="spoilt", timeout_s=1.0)
    posing = WeightReceiver()
    join_opened(posing, opened, "spoilt", timeout_s=1.0)  # it has taken the receiver's place
    with pytest.raises(TransferError):
        receive(receiver, opened)
    posing.close()
    assert push(sender, receiver, 2).manifest.version.number == 2
