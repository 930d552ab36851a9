"""Deltas from a learner's sender to a rollout's receiver over gloo: chosen where they help, never applied wrongly.

Each fault ends with `recovers`: the receiver still holds the bytes that it held, untouched, and the next push, which the
coordinator asks for without a base, brings the newest version whole.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from sluice.errors import NotReady, TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights import delta
from sluice.weights import links as links_module
from sluice.weights.cargo import Cargo
from sluice.weights.deltas import Deltas, Held
from sluice.weights.manifest import new_digest, plan
from sluice.weights.payload import digests_of
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import OpenedTransfer, WeightSender
from sluice.weights.snapshot import Packer, Snapshot
from tests.integration.weight_cases import join_opened
from tests.integration.weight_processes import Fault, break_transfer

pytestmark = pytest.mark.integration

TOTAL_BYTES, BUCKET_BYTES = 1 << 17, 1 << 9
LAYOUT = plan(
    [("a", "bfloat16", (TOTAL_BYTES // 4,)), ("b", "float32", (TOTAL_BYTES // 8,))], bucket_bytes=BUCKET_BYTES
)


def stepped(number: int, *, lineage: str = "a", seed: int = 0) -> Snapshot:
    """Version 0 has the random bits of `seed`; each later one changes 2 % of the elements of the version before."""
    data = np.random.default_rng(seed).integers(0, 256, LAYOUT.total_bytes, np.uint8)
    for step in range(number):
        rng = np.random.default_rng(step + 1)
        data.view("<u2")[rng.random(data.size // 2) < 0.02] += rng.integers(1, 3, dtype=np.uint16)
    packer = Packer(LAYOUT)
    for spec in LAYOUT.tensors:
        packer.put(spec.name, data[spec.offset_bytes : spec.offset_bytes + spec.size_bytes])
    return packer.seal(PolicyVersion(lineage=lineage, number=number))


class World:
    """A learner and one rollout, which holds version 0, and the coordinator's part between the two."""

    def __init__(self, *, share: float = 0.5) -> None:
        self.deltas = Deltas(most_share=share)
        self.sender = WeightSender(backend="gloo", host="127.0.0.1", deltas=self.deltas)
        self.receiver = WeightReceiver(keeps_base=True)
        self.epochs, self.epoch = 0, ""
        self.held: Held | None = None
        self.serves: Received | None = None
        self.sender.publish(stepped(0))
        assert self.push() == "dense"

    def open(self) -> OpenedTransfer:
        if not self.epoch:
            self.epochs += 1
            self.epoch = f"e{self.epochs}"
        return self.sender.open(rollout_id="r", epoch=self.epoch, timeout_s=5.0, held=self.held)

    def receive(self, opened: OpenedTransfer) -> str:
        """The encoding that travelled, once the version is applied."""
        try:
            if opened.new_epoch:
                join_opened(self.receiver, opened, self.epoch)
            self.receiver.begin(epoch=self.epoch, manifest=opened.manifest, payload=opened.payload)
            received = self.receiver.result(timeout_s=10.0)
        except (TransferError, NotReady):
            self.epoch, self.held = "", None
            raise
        self.serves, self.held = received, Held(version=received.manifest.version, digest=received.digest)
        self.receiver.recycle(received)
        assert opened.payload is not None
        return opened.payload.encoding

    def push(self) -> str:
        return self.receive(self.open())

    def holds(self, snapshot: Snapshot) -> None:
        """What the receiver took last is this, and its bytes still are."""
        assert self.serves is not None
        assert self.serves.manifest == snapshot.manifest
        hasher = new_digest(LAYOUT.tensors)
        hasher.update(self.serves.buffer.data)
        assert hasher.hexdigest() == snapshot.manifest.digest

    def recovers(self, newest: Snapshot, *, held: int) -> None:
        self.holds(stepped(held))
        assert self.push() == "dense"
        self.holds(newest)
        self.sender.publish(stepped(newest.manifest.version.number + 1))
        assert self.push() == "delta"
        self.holds(stepped(newest.manifest.version.number + 1))

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def test_a_step_travels_as_a_delta_and_missed_versions_as_a_chain_of_deltas(world: World) -> None:
    for number in (1, 2):
        world.sender.publish(stepped(number))
        opened = world.open()
        assert opened.payload is not None
        assert opened.payload.total_bytes < 0.1 * TOTAL_BYTES
        assert world.receive(opened) == "delta"
        world.holds(stepped(number))
    for number in (3, 4, 5):
        snapshot = stepped(number)
        world.sender.publish(snapshot)
        assert world.held is not None
        chain = world.deltas.cargo(world.held, snapshot, wait_s=5.0)
        assert chain is not None
        assert chain.buffer.tobytes().count(b"SLUD") == number - 2
    assert world.push() == "delta"
    world.holds(stepped(5))


def test_newcomers_other_lineages_and_steps_that_change_much_get_the_whole_version(world: World) -> None:
    world.sender.publish(stepped(1))
    opened = world.sender.open(rollout_id="newcomer", epoch="n", timeout_s=0.2)
    assert opened.payload is not None
    assert opened.payload.encoding == "dense"
    unknown = Held(version=PolicyVersion(lineage="a", number=0), digest="0" * 64)
    assert world.deltas.cargo(unknown, stepped(1), wait_s=5.0) is None
    for snapshot in (stepped(2, lineage="b"), stepped(3, lineage="b", seed=99)):
        world.sender.publish(snapshot)
        assert world.push() == "dense"
        world.holds(snapshot)


def test_a_delta_from_another_version_than_the_one_held_is_refused_before_a_byte_travels(world: World) -> None:
    world.sender.publish(stepped(1))
    opened = world.open()
    assert opened.payload is not None
    wrong = dataclasses.replace(opened.payload, base_digest="f" * 64)
    with pytest.raises(NotReady, match=r"its base is a0 with digest ffff.*holds a0 with digest"):
        world.receive(dataclasses.replace(opened, payload=wrong))
    world.recovers(stepped(1), held=0)


def test_part_of_a_delta_is_not_applied_and_a_fresh_epoch_goes_on_where_it_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault()
    monkeypatch.setattr(links_module, "join", fault.joined)
    world.epoch = ""
    world.sender.publish(stepped(1))
    held = world.held
    fault.arm(2, break_transfer)
    with pytest.raises(TransferError):
        world.push()
    world.holds(stepped(0))
    world.held = held
    fault.arm(100, break_transfer)
    opened = world.open()
    assert world.receive(opened) == "delta"
    assert opened.payload is not None
    assert 100 - fault.after == len(opened.payload.bucket_digests) - 2
    world.holds(stepped(1))


@pytest.mark.parametrize("how", ["a flipped bit", "a part that is missing", "a delta to another version"])
def test_a_wrong_delta_that_the_learner_itself_vouches_for_is_found_by_the_versions_digest(
    world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def wrong(chain: list[bytes], snapshot: Snapshot) -> bytes:
        made = bytearray(b"".join(chain))
        if how == "a flipped bit":
            made[len(made) // 2] ^= 1
        elif how == "a part that is missing":
            del made[-8:]
        else:
            other = delta.encode(stepped(0).buffer, stepped(3).buffer, LAYOUT.tensors, most_bytes=TOTAL_BYTES)
            made = bytearray(other or b"")
        return bytes(made)

    world.sender.publish(stepped(1))
    held = world.held
    assert held is not None
    right = world.deltas.cargo(held, world.sender.newest or stepped(1), wait_s=5.0)
    assert right is not None
    buffer = np.frombuffer(wrong([right.buffer.tobytes()], stepped(1)), np.uint8)
    lying = dataclasses.replace(right.payload, total_bytes=buffer.size, bucket_digests=digests_of(buffer, BUCKET_BYTES))
    monkeypatch.setattr(world.deltas, "cargo", lambda *_, **__: Cargo.whole(lying, buffer))
    with pytest.raises(TransferError, match=r"delta: |digest of the received bytes"):
        world.push()
    monkeypatch.undo()
    world.recovers(stepped(1), held=0)
