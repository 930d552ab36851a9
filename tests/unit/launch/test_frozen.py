"""Who counts as frozen: silence that somebody listened to, of a process that has answered before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sluice.config.schema import LaunchConfig
from sluice.launch.frozen import FrozenWatch, Lookout
from sluice.launch.keeper import Keeper
from sluice.testing import ManualClock

LAUNCH = LaunchConfig(frozen_timeout_s=30.0, ready_timeout_s=100.0)


@dataclass
class Process:
    """One that only notes that it was killed."""

    name: str
    started_s: float = 0.0
    killed: str = ""
    log_path: Path | None = None

    def log_tail(self) -> str:
        return ""

    def last_words(self) -> str:
        return ""

    @property
    def alive(self) -> bool:
        return not self.killed

    def kill(self, why: str) -> None:
        self.killed = why


@dataclass
class Children:
    """The keeper as the watch sees it."""

    found: dict[str, Process] = field(default_factory=dict)

    def child(self, name: str) -> Process | None:
        return self.found.get(name)


def _watch(clock: ManualClock, *processes: Process) -> FrozenWatch:
    children = Children({process.name: process for process in processes})
    return FrozenWatch(launch=LAUNCH, keeper=children, clock=clock)


def test_silence_counts_only_while_somebody_looked() -> None:
    lookout = Lookout(limit_s=30)
    for now in range(10, 40):
        lookout.look(now)
    assert lookout.silent_s(heard_s=5) == 29, "from the first look on"
    assert lookout.silent_s(heard_s=38) == 1
    lookout.look(39 + 14)
    assert lookout.silent_s(heard_s=5) == 43, "one look was late, by less than half of the limit"
    lookout.look(53 + 3600)
    assert lookout.silent_s(heard_s=5) == 0, "the machine slept"


def test_a_service_that_stops_its_heartbeats_is_killed_and_the_others_are_not() -> None:
    frozen, fine = Process("rollout-0"), Process("rollout-1")
    watch = _watch(ManualClock(), frozen, fine)
    for second in range(10, 41):
        watch.services({"rollout-0": second - 10, "rollout-1": 0.4, "by-hand": 1000.0}, asked_s=second)
    assert not frozen.killed
    watch.services({"rollout-0": 31.0, "rollout-1": 0.4}, asked_s=41)
    assert frozen.killed == "did not answer for 31 s (launch.frozen_timeout_s) and was killed"
    assert not fine.killed


def test_a_service_that_is_starting_again_is_not_blamed_for_the_silence_of_its_former_process() -> None:
    child = Process("rollout-0", started_s=20.0)
    watch = _watch(ManualClock(), child)
    for second in range(21, 121):
        watch.services({"rollout-0": second - 10}, asked_s=second)
    assert not child.killed
    watch.services({"rollout-0": 113.0}, asked_s=123)
    assert child.killed == "did not answer for 102 s (launch.ready_timeout_s) and was killed"


def test_after_a_coordinator_that_gave_no_status_for_long_nobody_is_killed_before_a_limit_has_passed() -> None:
    child = Process("rollout-0")
    watch = _watch(ManualClock(), child)
    watch.services({"rollout-0": 0.5}, asked_s=10)
    for second in range(70, 100):
        watch.services({"rollout-0": second - 9.5}, asked_s=second)
    assert not child.killed
    watch.services({"rollout-0": 91.0}, asked_s=101)
    assert child.killed


@dataclass
class Peer:
    """What is probed."""

    child: Process
    answering: bool = True

    async def answers(self) -> bool:
        return self.answering


@asynccontextmanager
async def _probed(clock: ManualClock, peer: Peer) -> AsyncIterator[None]:
    probe = asyncio.create_task(_watch(clock).probe(lambda: peer.child, peer.answers, ready=peer.child))
    try:
        yield
    finally:
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)


async def _pass(clock: ManualClock, seconds: int) -> None:
    for _ in range(seconds):
        await clock.advance(1.0)
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_peer_that_does_not_answer_is_killed_and_the_next_one_gets_its_time_to_start() -> None:
    clock, peer = ManualClock(), Peer(Process("coordinator"))
    async with _probed(clock, peer):
        await _pass(clock, 100)
        peer.answering = False
        await _pass(clock, 29)
        assert not peer.child.killed
        await _pass(clock, 3)
        assert "launch.frozen_timeout_s" in peer.child.killed
        peer.child = Process("coordinator", started_s=clock.now())
        await _pass(clock, 99)
        assert not peer.child.killed
        await _pass(clock, 3)
        assert "launch.ready_timeout_s" in peer.child.killed


async def test_a_launcher_that_was_stopped_itself_kills_nobody_when_it_goes_on() -> None:
    clock, peer = ManualClock(), Peer(Process("redis"))
    async with _probed(clock, peer):
        await _pass(clock, 3)
        peer.answering = False
        clock.skip(3600)
        await _pass(clock, 29)
        assert not peer.child.killed
        await _pass(clock, 3)
        assert peer.child.killed


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="frozen_timeout_s"):
        LaunchConfig(frozen_timeout_s=0)


def test_restarts_are_forgotten_after_the_window(tmp_path: Path) -> None:
    async def judged() -> list[str]:
        clock, said = ManualClock(), list[str]()

        async def never() -> bool:
            return False

        launch = LaunchConfig(max_restarts=2, restart_window_s=100)
        keeper = Keeper(launch=launch, log_dir=tmp_path, say=said.append, is_over=never, clock=clock)
        keeper.known.add("rollout-0")
        for _ in range(5):
            keeper.judge(Process("rollout-0"), 7)
            await clock.advance(50)
        return said

    counts = [line.partition("; ")[2] for line in asyncio.run(judged())]
    assert counts == ["restart 1 of 2", "restart 2 of 2", "restart 2 of 2", "restart 2 of 2", "restart 2 of 2"]
