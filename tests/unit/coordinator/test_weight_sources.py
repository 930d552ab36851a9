"""Where a version comes from while it spreads, with both ends of every transfer scripted: whom a failure is blamed on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.push_times import PushTimes
from services.coordinator.weights.link_watch import Look, is_slow
from services.coordinator.weights.push import WeightPush
from services.coordinator.weights.sources import PATIENCE_S, Round, Source
from sluice.errors import Expired, InvalidRequest, NotReady, SluiceError, TransferError, Unavailable, WrongBytes
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from sluice.v1 import common_pb2, learner_pb2, rollout_pb2
from sluice.weights.manifest import plan
from sluice.weights.payload import dense
from sluice.weights.snapshot import Packer
from sluice.weights.wire import manifest_to_proto, payload_to_proto
from tests.unit.coordinator.fakes import Stage, make_config

BUCKETS = 4


def what_the_learner_sends() -> tuple[common_pb2.WeightManifest, common_pb2.WeightPayload]:
    packer = Packer(plan([("w", "float32", (64,))], bucket_bytes=64))
    packer.put("w", np.zeros(256, np.uint8))
    snapshot = packer.seal(PolicyVersion(lineage="a", number=0))
    return manifest_to_proto(snapshot.manifest), payload_to_proto(dense(snapshot.manifest, snapshot.buffer))


@dataclass
class End:
    """One process of the fleet: what its calls answer."""

    ends: "Ends"
    name: str
    verified: int | None = BUCKETS
    """None: it does not answer when asked how far it is."""
    opens: SluiceError | None = None
    """Raised when somebody is to receive from it."""
    fails: list[SluiceError] = field(default_factory=list)
    """Raised by its next applies."""
    hangs: bool = False
    """Its applies do not come back while it receives from a rollout."""
    source: str = ""
    frozen: asyncio.Event = field(default_factory=asyncio.Event)
    """Its applies wait until this is set, where `freezes` says so."""
    freezes: bool = False

    async def OpenTransfer(self, request: Any, *, timeout: float) -> Any:
        receiver = request.rollout_id if self.name == "learner" else request.receiver_id
        self.ends.asked.append((receiver, self.name))
        if self.opens is not None:
            raise self.opens
        self.ends.of[receiver].source = self.name
        if self.name == "learner":
            manifest, payload = self.ends.sent
            return learner_pb2.OpenTransferResponse(manifest=manifest, payload=payload, backend="gloo")
        assert request.payload_id
        return rollout_pb2.RolloutServiceOpenTransferResponse(backend="gloo")

    async def ReceiveWeights(self, request: Any, *, timeout: float) -> Any:
        assert (request.manifest, request.payload) == self.ends.sent, "in the learner's words, whoever sends"
        return rollout_pb2.ReceiveWeightsResponse()

    async def GetInfo(self, request: Any, *, timeout: float) -> Any:
        if self.verified is None:
            raise Expired(f"{self.name} does not answer")
        return rollout_pb2.RolloutServiceGetInfoResponse(
            payload_id="p", verified_buckets=self.verified, buckets=BUCKETS
        )

    async def ApplyWeights(self, request: Any, *, timeout: float) -> Any:
        if self.fails:
            raise self.fails.pop(0)
        if self.hangs and self.source != "learner":
            await asyncio.Event().wait()
        if self.freezes:
            await self.frozen.wait()
        manifest = self.ends.sent[0]
        return rollout_pb2.ApplyWeightsResponse(version=request.version, digest=manifest.digest, receive_ms=1.0)


class Ends:
    """Learner L on a machine of its own, and rollouts a, b and c on one each, which hold nothing yet: a chain."""

    def __init__(self, **weights: Any) -> None:
        stage = Stage(
            make_config(weights__timeout_s=8.0, **{f"weights__{key}": value for key, value in weights.items()})
        )
        self.sent, self.asked = what_the_learner_sends(), list[tuple[str, str]]()
        self.fleet, self.clock, self.events, self.times = stage.fleet, stage.clock, stage.events, PushTimes()
        self.of = {name: End(ends=self, name=name) for name in ("learner", "a", "b", "c")}
        self.push = WeightPush(stage.run, self, times=self.times, prober=None)
        self.members = {name: self.add(name) for name in self.of}
        self.members["learner"].version = PolicyVersion(lineage="a", number=0)

    def add(self, name: str) -> Member:
        role = Role.LEARNER if name == "learner" else Role.ROLLOUT
        member = Member(
            service_id=name, role=role, address="-", incarnation=name, capacity=1, last_beat_s=0.0, host=f"host-{name}"
        )
        self.fleet.register(member)
        return member

    def share_memory(self) -> None:
        """Has all rollouts be on one machine, each of which can map the others' copies."""
        for name in "abc":
            self.members[name].host, self.members[name].memory = "host-a", "memory-a"

    def learner(self, member: Member) -> Any:
        return self.of[member.service_id]

    rollout = learner

    def ready(self) -> bool:
        return all(self.members[name].state is State.READY for name in "abc")

    def doubted(self) -> set[str]:
        return {name for name, member in self.members.items() if member.relays_from_s > self.clock.now()}

    @contextlib.asynccontextmanager
    async def pushing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.push.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_each_asks_the_one_before_it_once_that_one_has_begun() -> None:
    ends = Ends()
    async with ends.pushing():
        await assert_eventually(ends.ready)
    assert ends.asked == [("a", "learner"), ("b", "a"), ("c", "b")]
    assert {name: ends.members[name].source for name in "abc"} == {"a": "learner", "b": "a", "c": "b"}
    assert ends.times.metrics()["weights/relay_links"] == 3


async def test_of_one_memory_one_receives_and_the_others_ask_it_once_it_has_the_version() -> None:
    ends = Ends()
    ends.share_memory()
    ends.of["a"].freezes = True
    async with ends.pushing():
        await assert_eventually(lambda: ends.of["a"].source == "learner")
        await asyncio.sleep(0.02)
        assert ends.asked == [("a", "learner")]
        ends.of["a"].frozen.set()
        await assert_eventually(ends.ready)
    assert ends.asked == [("a", "learner"), ("b", "a"), ("c", "a")]


async def test_a_copy_that_does_not_come_is_not_waited_for_beyond_a_patience() -> None:
    ends = Ends()
    ends.share_memory()
    ends.of["a"].freezes = True
    async with ends.pushing():
        await assert_eventually(lambda: ends.of["a"].source == "learner")
        await asyncio.sleep(0.02)
        await ends.clock.advance(PATIENCE_S + 1.0)
        await assert_eventually(lambda: all(ends.members[name].state is State.READY for name in "bc"))
        assert ends.members["a"].state is not State.READY
    broken = Ends()
    broken.share_memory()
    broken.of["a"].fails = [TransferError("its link")] * 9
    async with broken.pushing():
        await assert_eventually(lambda: all(broken.members[name].state is State.READY for name in "bc"))
    assert ("b", "learner") in broken.asked
    assert broken.members["c"].source == "b"


async def test_without_the_relay_everybody_asks_the_learner() -> None:
    ends = Ends(relay="off")
    async with ends.pushing():
        await assert_eventually(ends.ready)
    assert [source for _, source in ends.asked] == ["learner"] * 3
    assert ends.times.metrics()["weights/relay_links"] == 1


@pytest.mark.parametrize(
    ("error", "sender", "receiver", "doubted"),
    [
        (TransferError("broken"), 3, 1, {"a"}),
        (TransferError("starved"), 2, 2, set()),
        (TransferError("frozen"), None, 1, {"a"}),
        (Expired("still arriving"), 3, 1, {"a"}),
    ],
)
async def test_a_link_that_ends_is_blamed_on_a_source_only_if_it_had_more_than_its_receiver(
    error: SluiceError, sender: int | None, receiver: int, doubted: set[str]
) -> None:
    ends = Ends()
    ends.of["b"].fails, ends.of["b"].verified, ends.of["a"].verified = [error], receiver, sender
    async with ends.pushing():
        await assert_eventually(ends.ready)
        assert ends.doubted() == doubted
    assert ends.members["b"].source == ("learner" if doubted else "a")
    assert ends.times.metrics()["weights/source_changes"] == 1


async def test_a_source_that_refuses_or_does_not_answer_is_passed_over() -> None:
    for error, doubted in ((NotReady("has another payload"), set[str]()), (Unavailable("no route"), {"a"})):
        ends = Ends()
        ends.of["a"].opens = error
        async with ends.pushing():
            await assert_eventually(ends.ready)
        assert ends.doubted() == doubted
        assert ("b", "learner") in ends.asked


async def test_a_receivers_own_fault_is_its_own() -> None:
    ends = Ends()
    ends.of["b"].fails = [InvalidRequest("another model"), TransferError("digest of the received bytes")]
    async with ends.pushing():
        await assert_eventually(lambda: ends.members["b"].state is State.QUARANTINED)
        assert not ends.doubted()
        await assert_eventually(lambda: ends.members["c"].state is State.READY)


async def test_wrong_bytes_are_blamed_on_their_source_and_on_their_finder_when_the_second_source_is_wrong_too() -> None:
    ends = Ends()
    ends.of["b"].fails = [WrongBytes("b: bucket 1 of 4 has a digest other than the learner's")]
    async with ends.pushing():
        await assert_eventually(lambda: ends.members["b"].state is State.READY)
        assert ends.members["a"].relays_from_s == float("inf")
        [told] = [event for event in ends.events._kept if event.kind == "service_quarantined"]
        assert told.labels["service_id"] == "a"
        assert told.message.startswith("a sent wrong bytes to b: bucket 1 of 4")
    framed = Ends()
    framed.of["b"].fails = [WrongBytes("b: bucket 1"), WrongBytes("b: bucket 1")]
    async with framed.pushing():
        await assert_eventually(lambda: framed.members["b"].state is State.QUARANTINED)
        assert not framed.doubted()


async def test_a_source_that_hangs_is_left_before_the_transfers_deadline() -> None:
    ends = Ends()
    ends.of["b"].hangs, ends.of["b"].verified, ends.of["a"].verified = True, 1, None
    async with ends.pushing():
        await assert_eventually(lambda: ends.of["b"].source == "a")
        for _ in range(2):
            await asyncio.sleep(0.02)
            await ends.clock.advance(2.0)
        await assert_eventually(ends.ready)
    assert ends.doubted() == {"a"}


def test_a_link_is_slow_when_its_receiver_gets_much_less_than_it_could_have() -> None:
    first = Look(at_s=0.0, source=100, receiver=0)
    for last, slow in (
        (Look(at_s=1.0, source=140, receiver=9), True),  # 9 a second, its source got 40
        (Look(at_s=1.0, source=140, receiver=11), False),
        (Look(at_s=0.0, source=140, receiver=0), False),
    ):
        assert is_slow(first, last, source_per_s=40.0) is slow
    starved = Look(at_s=0.0, source=3, receiver=2)
    assert not is_slow(starved, Look(at_s=1.0, source=4, receiver=3), source_per_s=40.0), "it had all that was there"


async def test_who_begins_anew_has_no_whole_copy() -> None:
    ends = Ends()
    learner, a = ends.members["learner"], ends.members["a"]
    entered, source = Round(learner=learner), Source(member=learner, offer=None, links=1)
    opened = learner_pb2.OpenTransferResponse(manifest=ends.sent[0], payload=ends.sent[1])
    entered.begins(a, opened, source=source, now_s=0.0)
    assert entered.copy_comes_in_s(a, 0.0) > PATIENCE_S
    entered.ends(a, 1.0, buckets=BUCKETS)
    assert entered.copy_comes_in_s(a, 0.0) == 0.0
    entered.begins(a, opened, source=source, now_s=1.0)
    assert entered.copy_comes_in_s(a, 1.0) > PATIENCE_S
