"""Weights from a learner's sender to a rollout's receiver over gloo, and everything that can go wrong on the way."""

import os
import threading
import time

import numpy as np
import pytest

from sluice.errors import Expired, NotReady, TransferError
from sluice.weights import links as links_module
from sluice.weights.backends import Collective, Rendezvous, TransferGroup
from sluice.weights.payload import dense
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import WeightSender
from tests.integration.weight_cases import join_opened, random_snapshot, rendezvous
from tests.integration.weight_processes import Fault, SenderProcess, break_transfer

pytestmark = pytest.mark.integration


def push(sender: WeightSender, receiver: WeightReceiver, epoch: str, *, rollout_id: str = "r") -> Received:
    opened = sender.open(rollout_id=rollout_id, epoch=epoch, timeout_s=5.0)
    if opened.new_epoch:
        join_opened(receiver, opened, epoch)
    receiver.begin(epoch=epoch, manifest=opened.manifest, payload=opened.payload)
    return receiver.result(timeout_s=10.0)


def test_versions_arrive_whole_over_one_epoch_and_a_newcomer_gets_the_newest(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    for number in range(3):
        snapshot = random_snapshot(number)
        sender.publish(snapshot)
        received = push(sender, receiver, "e")
        np.testing.assert_array_equal(received.buffer, snapshot.buffer)
        assert received.manifest == snapshot.manifest
        assert received.digest == snapshot.manifest.digest
        receiver.recycle(received)
    newcomer = WeightReceiver()
    assert push(sender, newcomer, "n", rollout_id="newcomer").manifest.version.number == 2
    newcomer.close()


def test_nothing_is_sent_before_something_is_published(sender: WeightSender) -> None:
    with pytest.raises(NotReady, match="published no weights"):
        sender.open(rollout_id="r", epoch="e", timeout_s=1.0)


@pytest.mark.timeout(60)  # without a limit of its own the join would wait for ever
def test_a_learner_that_is_frozen_when_a_rollout_joins_costs_that_epoch(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    learner = SenderProcess()
    try:
        learner.ask(do="make", backend="gloo", directory="", number=1)
        opened = learner.open("r", "e1")
        learner.signal("SIGSTOP")
        where = rendezvous(port=opened["port"], secret=opened["secret"], epoch="e1", timeout_s=1.0)
        with pytest.raises(TransferError, match="e1"):  # its kernel still accepts the connection
            receiver.join(where, backend="gloo")
        sender.publish(random_snapshot(2))
        assert push(sender, receiver, "e2").manifest.version.number == 2
    finally:
        learner.kill()
    _join_threads("weights-join")


def test_a_receiver_that_never_comes_costs_one_epoch_and_delays_nobody(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1))
    sender.open(rollout_id="absent", epoch="gone", timeout_s=1.0)
    started = time.monotonic()
    assert push(sender, receiver, "e").manifest.version.number == 1
    assert time.monotonic() - started < 0.9
    _join_threads("weights-absent")
    with pytest.raises(NotReady, match="open a fresh one"):
        sender.open(rollout_id="absent", epoch="gone", timeout_s=1.0)


def test_a_receiver_that_leaves_mid_transfer_is_only_its_own_loss(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1, total_bytes=32 << 20))
    leaver = WeightReceiver()
    opened = sender.open(rollout_id="leaver", epoch="l", timeout_s=1.0)
    join_opened(leaver, opened, "l", timeout_s=1.0)  # joins, receives nothing, goes
    leaver.close()
    assert push(sender, receiver, "e").manifest.version.number == 1
    _join_threads("weights-leaver")
    with pytest.raises(NotReady, match="open a fresh one"):
        sender.open(rollout_id="leaver", epoch="l", timeout_s=1.0)


def test_a_stranger_without_the_secret_finds_nobody(sender: WeightSender, receiver: WeightReceiver) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="e", timeout_s=1.0)
    with pytest.raises(TransferError, match="could not join"):
        receiver.join(rendezvous(port=opened.store_port, secret="guess", epoch="e", timeout_s=0.5), backend="gloo")


def test_a_receive_that_takes_too_long_is_given_up_and_a_fresh_epoch_works(
    sender: WeightSender, receiver: WeightReceiver
) -> None:
    sender.publish(random_snapshot(1))
    opened = sender.open(rollout_id="r", epoch="e1", timeout_s=1.0)
    join_opened(receiver, opened, "e1", timeout_s=1.0)
    longer = random_snapshot(1, total_bytes=8 << 20)  # waits for buckets that are never sent
    promised = dense(longer.manifest, longer.buffer)
    receiver.begin(epoch="e1", manifest=longer.manifest, payload=promised)
    with pytest.raises(NotReady, match="under way"):
        receiver.begin(epoch="e1", manifest=longer.manifest, payload=promised)
    with pytest.raises(Expired, match="still arriving"):
        receiver.result(timeout_s=0.5)
    assert push(sender, receiver, "e2").manifest.version.number == 1


def test_a_version_that_was_interrupted_goes_on_where_it_stopped_from_another_source(
    sender: WeightSender, receiver: WeightReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, other = Fault(), WeightSender(backend="gloo", host="127.0.0.1")
    monkeypatch.setattr(links_module, "join", fault.joined)
    for source in (sender, other):
        source.publish(random_snapshot(1))
    fault.arm(10, break_transfer)
    with pytest.raises(TransferError):
        push(sender, receiver, "e1")
    fault.arm(100, break_transfer)
    assert push(other, receiver, "e2").digest == random_snapshot(1).manifest.digest
    assert 100 - fault.after == 64 - 10
    other.close()


def test_twenty_epochs_leave_no_threads_and_no_file_descriptors(sender: WeightSender, receiver: WeightReceiver) -> None:
    sender.publish(random_snapshot(0, total_bytes=1 << 16))
    push(sender, receiver, "warm")
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for epoch in range(20):
        push(sender, receiver, f"e{epoch}")
    for thread in _threads_named("weights-r")[:-1]:
        thread.join(5.0)
    assert threading.active_count() <= threads + 1
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 4


def test_closing_the_sender_ends_its_threads(receiver: WeightReceiver) -> None:
    sender = WeightSender(backend="gloo", host="127.0.0.1")
    sender.publish(random_snapshot(0))
    push(sender, receiver, "e")
    sender.close()
    assert not _threads_named("weights-r")
    with pytest.raises(NotReady, match="closing"):
        sender.open(rollout_id="r", epoch="f", timeout_s=1.0)


def _join_threads(name: str) -> None:
    for thread in _threads_named(name):
        thread.join(5.0)
        assert not thread.is_alive()


def _threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_auto_takes_nccl_between_two_gpus_and_gloo_on_one_and_with_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    joined, opened = dict[str, str](), threading.Event()

    def join(where: Rendezvous, *, backend: Collective) -> TransferGroup:
        joined[where.epoch] = backend
        assert opened.wait(5.0)
        raise TransferError("made-up devices")

    monkeypatch.setattr(links_module, "join", join)
    mine = "GPU-00000000-0000-0000-0000-00000000000a"
    for own, theirs, backend in (
        (mine, "GPU-00000000-0000-0000-0000-00000000000b", "nccl"),
        (mine, mine, "gloo"),
        (mine, "cpu", "gloo"),
        (mine, "", "gloo"),  # a rollout that does not tell
        ("cpu", mine, "gloo"),
        ("cpu", "cpu", "gloo"),
    ):
        sender = WeightSender(backend="auto", host="127.0.0.1", device=own)
        sender.publish(random_snapshot(0))
        opened.clear()
        told = sender.open(rollout_id="r", epoch=f"{own}.{theirs}", timeout_s=1.0, receiver_device=theirs)
        opened.set()
        _join_threads("weights-r")
        assert told.backend == joined[f"{own}.{theirs}"] == backend
        sender.close()
    opened.clear()
    asked = WeightSender(backend="nccl", host="127.0.0.1", device=mine)
    asked.publish(random_snapshot(0))
    assert asked.open(rollout_id="r", epoch="e", timeout_s=1.0, receiver_device=mine).backend == "nccl"
    opened.set()
    asked.close()
