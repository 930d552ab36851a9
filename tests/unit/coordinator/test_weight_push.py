"""What a push does to a member's standing, with both ends scripted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.push_times import PushTimes
from services.coordinator.weights.push import WeightPush
from services.coordinator.weights.push_limits import PushLimits, files_bytes
from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually
from sluice.v1 import common_pb2, learner_pb2, rollout_pb2
from tests.unit.coordinator.fakes import Stage, make_config


@dataclass
class Ends:
    """Learner and rollout: every transfer works, applying waits for `may_apply`."""

    may_apply: asyncio.Event = field(default_factory=asyncio.Event)
    wrong_digests: int = 0
    newest: int = 0
    total_bytes: int = 0
    opening_s: list[float] = field(default_factory=list)
    arriving_s: list[float] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)
    sends_deltas: bool = False
    """Whether whoever holds a version gets a delta of 10 bytes, others 1000; otherwise everybody gets a file."""
    asked: list[tuple[int, str]] = field(default_factory=list)
    """Number and digest of what the learner was told that the rollout holds, of every transfer; -1 without."""

    def learner(self, member: Member) -> "Ends":
        return self

    def rollout(self, member: Member) -> "Ends":
        return self

    async def OpenTransfer(self, request: Any, timeout: float) -> Any:
        self.asked.append((request.held.number if request.HasField("held") else -1, request.held_digest))
        version = common_pb2.PolicyVersion(lineage="a", number=self.newest)
        self.opening_s.append(timeout)
        manifest = common_pb2.WeightManifest(version=version, digest="right", total_bytes=self.total_bytes)
        if self.sends_deltas:
            manifest.total_bytes = 1000
            kind = ("delta", 10) if request.held_digest else ("dense", 1000)
            payload = common_pb2.WeightPayload(encoding=kind[0], total_bytes=kind[1])
            return learner_pb2.OpenTransferResponse(manifest=manifest, backend="gloo", payload=payload)
        return learner_pb2.OpenTransferResponse(manifest=manifest, backend="file", file_path="-")

    async def ReceiveWeights(self, request: Any, timeout: float) -> Any:
        return rollout_pb2.ReceiveWeightsResponse()

    async def ApplyWeights(self, request: Any, timeout: float) -> Any:
        self.deadlines_s.append(timeout)
        self.arriving_s.append(request.timeout_s)
        await self.may_apply.wait()
        digest = "wrong" if self.wrong_digests > 0 else "right"
        self.wrong_digests -= 1
        return rollout_pb2.ApplyWeightsResponse(version=request.version, digest=digest)


@dataclass
class Doubts:
    """A prober that finds the members of `odd` out, once."""

    odd: list[Member] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def check(self, member: Member, version: PolicyVersion) -> list[Member]:
        self.asked.append(member.service_id)
        odd, self.odd = self.odd, []
        return odd


class Scene:
    def __init__(self, ends: Ends, *, finish_s: float | None = None) -> None:
        config = make_config(
            weights__timeout_s=10.0,
            weights__inflight="keep" if finish_s is None else "finish",
            coordinator__generate_timeout_s=finish_s or 60.0,
        )
        stage = Stage(config)
        self.ends, self.fleet, self.clock, self.doubts = ends, stage.fleet, stage.clock, Doubts()
        self.learner = self.add(Role.LEARNER, "learner")
        self.times = PushTimes()
        self.push = WeightPush(stage.run, ends, times=self.times, prober=self.doubts)

    def add(self, role: Role, name: str) -> Member:
        member = Member(service_id=name, role=role, address="-", incarnation=name, capacity=1, last_beat_s=0.0)
        self.fleet.register(member)
        return member

    def publish(self, number: int) -> None:
        self.ends.newest = number
        self.learner.version = PolicyVersion(lineage="a", number=number)
        self.fleet.notify_all()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.push.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.mark.parametrize(("finish_s", "deadline_s"), [(60.0, 72.0), (None, 12.0)])
async def test_a_rollout_is_closed_to_new_groups_only_while_it_lets_samples_end(
    finish_s: float | None, deadline_s: float
) -> None:
    scene = Scene(Ends(), finish_s=finish_s)
    member = scene.add(Role.ROLLOUT, "r")
    scene.publish(0)
    async with scene.running():
        await assert_eventually(lambda: bool(scene.ends.deadlines_s))
        assert member.finishing is (finish_s is not None)
        assert scene.ends.deadlines_s == [deadline_s]
        scene.ends.may_apply.set()
        await assert_eventually(lambda: member.state is State.READY)
        assert not member.finishing


async def test_every_limit_of_a_push_grows_with_the_bytes() -> None:
    """65 GB: 1300 s on the slowest link, and 650 s for each thing that a slow machine does with all bytes."""
    scene = Scene(Ends(total_bytes=65_000_000_000))
    scene.ends.may_apply.set()
    member = scene.add(Role.ROLLOUT, "r")
    for number in (0, 1):
        scene.publish(number)
        async with scene.running():
            await assert_eventually(lambda: member.version == PolicyVersion(lineage="a", number=scene.ends.newest))
    assert scene.ends.opening_s == [10.0, 660.0]  # the first version is not known before it is opened
    assert scene.ends.arriving_s == [1310.0, 1310.0]
    assert scene.ends.deadlines_s == [2612.0, 2612.0]


def test_a_model_folder_tells_the_first_limit(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(32_500_000_000)
    limits = PushLimits(timeout_s=10.0, model_bytes=files_bytes(str(tmp_path)))
    assert limits.opening_s() == 660.0
    assert limits.applying_s(1_000_000_000, finish_s=5.0) == 10.0 + 20.0 + 5.0 + 1300.0 + 2.0, (
        "adapters are few, the model is not"
    )
    assert files_bytes(str(tmp_path / "elsewhere")) == 0


async def test_only_newcomers_and_the_quarantined_are_probed() -> None:
    scene = Scene(Ends(wrong_digests=1))
    scene.ends.may_apply.set()
    member = scene.add(Role.ROLLOUT, "r")
    scene.publish(0)
    async with scene.running():
        await assert_eventually(lambda: member.state is State.QUARANTINED)
        assert not scene.doubts.asked
        await scene.clock.advance(1.0)
        await assert_eventually(lambda: member.state is State.READY)
        scene.publish(1)
        await assert_eventually(lambda: member.version == PolicyVersion(lineage="a", number=1))
    assert scene.doubts.asked == ["r"]


async def test_the_odd_one_that_another_probe_found_is_synced_again_at_the_same_version() -> None:
    scene = Scene(Ends())
    scene.ends.may_apply.set()
    odd = scene.add(Role.ROLLOUT, "odd")
    scene.publish(0)
    async with scene.running():
        await assert_eventually(lambda: odd.state is State.READY)
        scene.doubts.odd = [odd]
        newcomer = scene.add(Role.ROLLOUT, "newcomer")
        await assert_eventually(lambda: scene.doubts.asked == ["odd", "newcomer", "odd"])
        await assert_eventually(lambda: odd.state is newcomer.state is State.READY)


async def test_a_probe_that_fails_quarantines_and_leaves_the_version_unclaimed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Ends())
    scene.ends.may_apply.set()
    member = scene.add(Role.ROLLOUT, "r")

    async def refuse(*_: Any) -> list[Member]:
        raise TransferError("its engine computes something else")

    monkeypatch.setattr(scene.doubts, "check", refuse)
    scene.publish(0)
    async with scene.running():
        await assert_eventually(lambda: member.state is State.QUARANTINED)
        assert member.version is None


async def test_the_learner_hears_what_a_rollout_acknowledged_until_a_push_fails_or_deltas_fail_again_and_again() -> (
    None
):
    scene = Scene(Ends(sends_deltas=True))
    scene.ends.may_apply.set()
    member = scene.add(Role.ROLLOUT, "r")

    async def push(number: int, *, fails: bool) -> None:
        scene.ends.wrong_digests = int(fails)
        scene.publish(number)
        if fails:
            await assert_eventually(lambda: member.state is State.QUARANTINED)
            await scene.clock.advance(1.0)
        await assert_eventually(lambda: member.version == PolicyVersion(lineage="a", number=number))

    async with scene.running():
        for number in range(3):
            await push(number, fails=False)
        assert scene.ends.asked == [(-1, ""), (0, "right"), (1, "right")]
        assert (member.encoding, member.sent_bytes, member.whole_in_a_row) == ("delta", 10, 0)
        metrics = scene.times.metrics()
        assert [metrics[f"weights/{name}"] for name in ("sent_bytes", "dense_bytes", "deltas")] == [1020, 3000, 2]
        scene.ends.asked.clear()
        for number in range(3, 7):
            await push(number, fails=True)
    told = [held for held, _ in scene.ends.asked]
    assert told == [2, -1, 3, -1, 4, -1, -1, -1], "after three failures in a row it is one that takes no deltas"
