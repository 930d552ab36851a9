"""What every weight backend promises when an end dies, freezes, lies or comes late. Receivers are real processes.

Each case ends with `recovers`: everybody is free again within a deadline, the others have the new version, the faulty
receiver still serves the old one (if it lives), and a fresh epoch brings it the new one.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from sluice.weights import links as links_module
from sluice.weights.backends import Collective, Rendezvous, TransferGroup
from sluice.weights.deltas import Deltas
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot
from tests.integration.weight_cases import random_snapshot, stepped_snapshot
from tests.integration.weight_processes import (
    OPERATION_S,
    Backend,
    Fault,
    ReceiverProcess,
    SenderProcess,
    break_transfer,
)
from tests.integration.weight_streams import serving

pytestmark = pytest.mark.timeout(180)

AFTER = 3
"""Buckets that have moved when a fault strikes; a snapshot has 64."""

SETTLE_S = OPERATION_S + 8.0
"""Within which a blocked end is free: its operation's limit, and what a busy machine adds."""


class World:
    """A learner's sender here and two receivers that serve version 0."""

    def __init__(
        self, backend: Backend, directory: Path, fault: Fault, *, snapshots: Callable[[int], Snapshot] = random_snapshot
    ) -> None:
        """`snapshots` makes the version of a number; versions travel as deltas where that is shorter."""
        self.snapshots = snapshots
        self.backend, self.directory = backend, directory
        self.fault = fault
        """Of the learner's transfers to `victim`."""
        self.closing = contextlib.ExitStack()
        deltas = Deltas(most_share=0.5) if snapshots is not random_snapshot else None
        self.sender = WeightSender(backend=backend, host="127.0.0.1", directory=directory, deltas=deltas)
        if backend == "grpc":
            assert self.sender.links is not None
            self.closing.enter_context(serving(self.sender.links, passing=self.pass_piece))
        self.receivers = {name: ReceiverProcess(name) for name in ("victim", "other")}
        self.publish(0)
        for receiver in self.receivers.values():
            assert receiver.push(self.sender) == {"applied": 0}

    @property
    def victim(self) -> ReceiverProcess:
        return self.receivers["victim"]

    @property
    def other(self) -> ReceiverProcess:
        return self.receivers["other"]

    @property
    def joins(self) -> bool:
        """Whether a sender has a thread for each receiver."""
        return self.backend not in ("file", "grpc")

    def pass_piece(self, epoch: str) -> None:
        """Before a piece of a bucket leaves over gRPC; a bucket of these tests is one piece."""
        if "victim" in epoch:
            self.fault.pass_bucket()

    def publish(self, number: int) -> None:
        self.sender.publish(self.snapshots(number))

    def dying_learner(self) -> SenderProcess:
        """Another learner over the same backend, which has published version 1."""
        learner = SenderProcess()
        self.closing.callback(learner.kill)
        learner.ask(do="make", backend=self.backend, directory=str(self.directory), number=1)
        return learner

    def replace_victim(self) -> None:
        """A new process under the same name, which holds nothing."""
        self.receivers["victim"].kill()
        self.receivers["victim"] = ReceiverProcess("victim")

    def recovers(self, *, number: int, victim_serves: int | None) -> None:
        """The four promises, once `other` was pushed `number` and `victim` has failed."""
        assert self.other.serves() == self.told(number)
        if victim_serves is None:
            self.replace_victim()
        else:
            assert self.victim.serves() == self.told(victim_serves)
        self.publish(number + 1)
        for receiver in self.receivers.values():
            assert receiver.push(self.sender) == {"applied": number + 1}
            assert receiver.serves() == self.told(number + 1)
        self.sender_is_free(but=self.receivers.keys() if self.joins else ())

    def told(self, number: int) -> tuple[int, str]:
        """What a receiver that holds this version says of itself."""
        return number, self.snapshots(number).manifest.digest

    def sender_is_free(self, *, but: Collection[str]) -> None:
        """Within the deadline no sender's thread is left but one for each of these rollouts, and no stream."""
        deadline = time.monotonic() + SETTLE_S
        kept = {self.sender.links.threads()[name] for name in but} if self.sender.links else set()
        for thread in threading.enumerate():
            if thread.name.startswith("weights-") and thread not in kept:
                thread.join(deadline - time.monotonic())
                assert not thread.is_alive(), thread.name
        if self.backend == "grpc":
            assert self.sender.links is not None
            while self.sender.links.busy():
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def close(self) -> None:
        self.closing.close()
        for receiver in self.receivers.values():
            receiver.kill()
        self.sender.close()


@pytest.fixture(
    params=[
        pytest.param("gloo", marks=pytest.mark.integration),
        pytest.param("grpc", marks=pytest.mark.integration),
        pytest.param("file", marks=pytest.mark.integration),
        pytest.param("nccl", marks=(pytest.mark.gpu, pytest.mark.needs("two-gpus"))),
    ]
)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    fault, join = Fault(), links_module.join

    def joined(where: Rendezvous, *, backend: Collective) -> TransferGroup:
        return (fault.joined if "victim" in where.epoch else join)(where, backend=backend)

    monkeypatch.setattr(links_module, "join", joined)
    made = World(request.param, tmp_path, fault)
    yield made
    made.close()


def flipped(snapshot: Snapshot) -> Snapshot:
    """One byte differs from what its manifest promises."""
    buffer = snapshot.buffer.copy()
    buffer[1000] ^= 1
    return dataclasses.replace(snapshot, buffer=buffer)


def test_a_receiver_killed_while_idle_costs_its_own_epoch(world: World) -> None:
    world.victim.kill()
    world.publish(1)
    world.sender.open(
        rollout_id="victim", epoch=world.victim.epoch, timeout_s=OPERATION_S
    )  # nobody is there to take it
    assert world.other.push(world.sender) == {"applied": 1}
    world.recovers(number=1, victim_serves=None)


def test_a_receiver_killed_within_a_bucket_costs_its_own_epoch(world: World) -> None:
    world.publish(1)
    world.victim.begin(world.sender, fault={"after": AFTER, "signal": "SIGKILL"})
    assert world.other.push(world.sender) == {"applied": 1}
    with pytest.raises(EOFError):
        world.victim.outcome()
    world.recovers(number=1, victim_serves=None)


def test_a_receiver_that_freezes_within_a_bucket_keeps_its_version_and_delays_nobody(world: World) -> None:
    world.publish(1)
    world.victim.begin(world.sender, fault={"after": AFTER, "signal": "SIGSTOP"})
    assert world.other.push(world.sender) == {"applied": 1}
    world.sender_is_free(but=["other"] if world.joins else ())
    world.victim.signal("SIGCONT")
    outcome = world.victim.outcome()
    if world.backend == "file":  # the learner had left nothing undone
        assert outcome == {"applied": 1}
    elif world.backend == "gloo" or "applied" not in outcome:  # over gRPC all of it may have been on its way already
        assert outcome["error"] == "TransferError"
    world.recovers(number=1, victim_serves=outcome.get("applied", 0))


def test_a_late_joiner_and_a_late_receiver_skip_to_the_newest(world: World) -> None:
    for number in (1, 2, 3):
        world.publish(number)
        assert world.other.push(world.sender) == {"applied": number}
    joiner = world.receivers["joiner"] = ReceiverProcess("joiner")
    assert joiner.push(world.sender) == {"applied": 3}
    assert joiner.serves() == world.other.serves() == world.told(3)
    world.recovers(number=3, victim_serves=0)


def test_half_a_transfer_is_not_applied(world: World) -> None:
    world.publish(1)
    if world.backend == "file":
        half = random_snapshot(1)
        opened = world.sender.open(rollout_id="victim", epoch="", timeout_s=OPERATION_S)
        whole = Path(opened.file_path).read_bytes()
        Path(opened.file_path).write_bytes(whole[: half.manifest.total_bytes // 2])
        outcome = world.victim.push(world.sender)
        Path(opened.file_path).write_bytes(whole)
    else:
        world.fault.arm(2, break_transfer)
        outcome = world.victim.push(world.sender)
    assert outcome["error"] == "TransferError"
    assert world.other.push(world.sender) == {"applied": 1}
    world.recovers(number=1, victim_serves=0)


def test_a_flipped_byte_is_refused(world: World) -> None:
    world.sender.publish(flipped(random_snapshot(1)))
    outcome = world.victim.push(world.sender)
    assert outcome["error"] == "TransferError"
    assert "digest" in outcome["text"]
    world.publish(2)
    assert world.other.push(world.sender) == {"applied": 2}
    world.recovers(number=2, victim_serves=0)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_learner_that_dies_or_freezes_within_a_bucket_leaves_the_old_version_serving(
    world: World, signal: str
) -> None:
    learner = world.dying_learner()
    opened = {
        receiver: learner.open(receiver.rollout_id, f"{receiver.rollout_id}.elsewhere")
        for receiver in (world.victim, world.other)
        if world.backend != "file"
    }
    learner.arm(after=AFTER, signal=signal)
    for receiver, transfer in opened.items():
        receiver.begin_opened(transfer, f"{receiver.rollout_id}.elsewhere")
    if world.backend == "file":  # it dies as it writes: nothing is opened, so nobody waits
        learner.tell(do="open", rollout_id="victim", epoch="")
    for receiver in opened:
        assert receiver.outcome()["error"] == "TransferError"
    for receiver in world.receivers.values():
        assert receiver.serves() == world.told(0)
    learner.kill()
    world.publish(1)
    assert world.other.push(world.sender) == {"applied": 1}
    world.recovers(number=1, victim_serves=0)


@pytest.mark.integration
def test_the_same_holds_while_deltas_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, join = Fault(), links_module.join

    def joined(where: Rendezvous, *, backend: Collective) -> TransferGroup:
        return (fault.joined if "victim" in where.epoch else join)(where, backend=backend)

    monkeypatch.setattr(links_module, "join", joined)
    world = World("gloo", tmp_path, fault, snapshots=stepped_snapshot)
    try:
        world.publish(1)
        fault.arm(2, break_transfer)
        assert world.victim.push(world.sender)["error"] == "TransferError"
        assert world.other.push(world.sender) == {"applied": 1}
        assert _encodings(world) == ["delta", "delta"]
        world.recovers(number=1, victim_serves=0)
        assert _encodings(world) == ["dense", "delta"], "whole after a failure"
        world.publish(3)
        world.victim.begin(world.sender, fault={"after": 2, "signal": "SIGKILL"})
        assert world.other.push(world.sender) == {"applied": 3}
        with pytest.raises(EOFError):
            world.victim.outcome()
        assert _encodings(world) == ["delta", "delta"]
        world.recovers(number=3, victim_serves=None)
        assert _encodings(world) == ["dense", "delta"], "a new process holds nothing"
    finally:
        world.close()


def _encodings(world: World) -> list[str]:
    opened = [receiver.opened for receiver in (world.victim, world.other)]
    return [transfer.payload.encoding for transfer in opened if transfer is not None and transfer.payload is not None]
