"""A learner on several machines, as the keeper keeps it: one round, one death; lost and without a place cost nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sluice.config.schema import Config
from sluice.errors import ConfigError, LaunchError
from sluice.launch import keeper as keeper_module
from sluice.launch.commands import Command, service_command
from sluice.launch.engines.port import LOST
from sluice.launch.frozen import FrozenWatch
from sluice.launch.keeper import Keeper
from sluice.launch.machines import SETTLE_S
from sluice.process import exit_codes
from sluice.testing import ManualClock

CONFIG = Config.model_validate(
    {
        "model": {"path": "m"},
        "data": {"train_files": ["x.jsonl"]},
        "launch": {"engine": "ray", "learner_nnodes": 2, "place_timeout_s": 1000, "ready_timeout_s": 77},
    }
)
LEARNER = service_command(CONFIG, "learner", index=0, coordinator="c:1", run_id="run")
ROOM = ("n1", "n2")


@dataclass
class Placed:
    """A task whose process does what the test says."""

    command: Command
    node: str
    log_path: Path
    started_s: float
    killed: str = ""
    lost: str = ""
    stopped: bool = False
    stops_with: int = -15
    leaves: str = ""
    noticed: asyncio.Event = field(default_factory=asyncio.Event)
    code: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def alive(self) -> bool:
        return not self.code.done()

    def ends(self, code: int) -> None:
        self.code.set_result(code)

    def is_lost(self) -> None:
        self.lost = f"node {self.node} is gone"
        self.ends(LOST)

    def is_drained(self) -> None:
        self.leaves = f"Ray drains node {self.node}"
        self.noticed.set()

    async def wait(self) -> int:
        return await asyncio.shield(self.code)

    async def notice(self) -> str:
        await self.noticed.wait()
        return self.leaves

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        self.stopped = True
        if self.alive and self.leaves:
            self.lost = self.leaves
            self.ends(LOST)
        elif self.alive:
            self.ends(self.stops_with)

    def kill(self, why: str) -> None:
        self.killed = why
        self.ends(-9)

    def log_tail(self) -> str:
        return f"end of {self.log_path.name}"

    def last_words(self) -> str:
        return f"last words of {self.name}"


class Scene:
    """A keeper of a learner on two machines, over an engine with as many places as the test says."""

    name = "in-test"

    def __init__(self, folder: Path) -> None:
        self.clock, self.said, self.over = ManualClock(), list[str](), False
        self.free, self.placed, self.unfit = list(ROOM), list[Placed](), dict[str, str]()
        self.keeper = Keeper(
            launch=CONFIG.launch,
            log_dir=folder,
            say=self.said.append,
            is_over=self._is_over,
            clock=self.clock,
            engine=self,
        )
        self.keeper.known.add("learner")

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None: ...

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Any:
        if not self.free:
            waits("no node has 1 free GPU")
        while not self.free:
            await self.clock.sleep(1.0)
        node, now_s = self.free.pop(0), self.clock.now()
        self.placed.append(Placed(command=command, node=node, log_path=log_path, started_s=now_s))
        return self.placed[-1]

    async def exclude(self, node: str, why: str) -> None:
        self.unfit[node] = why

    async def close(self) -> None: ...

    async def _is_over(self) -> bool:
        return self.over

    async def until(self, condition: Callable[[], bool]) -> None:
        """Lets time pass until something is the case."""
        for _ in range(2000):
            if condition():
                return
            await self.clock.advance(0.5)
            await asyncio.sleep(0)
        raise AssertionError(self.said)

    async def round(self, number: int, *, free: tuple[str, ...] = ROOM) -> list[Placed]:
        """The two tasks of the n-th round; what ended before has given its place back."""
        self.free = list(free)
        await self.until(lambda: len(self.placed) == 2 * number and self.keeper.child("learner") is not None)
        return self.placed[-2:]

    async def failure(self) -> BaseException:
        await self.until(self.keeper.failed.done)
        error = self.keeper.failed.exception()
        assert error is not None
        return error


@asynccontextmanager
async def kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    async def at_once(work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    monkeypatch.setattr(keeper_module.asyncio, "to_thread", at_once)
    scene = Scene(folder)
    scene.keeper.keep(LEARNER)
    yield scene
    await scene.keeper.stop(last="coordinator", at_once=asyncio.Event())
    assert [task.name for task in scene.placed if task.alive] == []


def _flag(task: Placed, flag: str) -> str:
    argv = list(task.command.argv)
    assert argv.index(flag) < argv.index("--")
    return argv[argv.index(flag) + 1]


async def test_a_round_that_one_machine_broke_is_one_restart_and_is_never_joined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        first, further = await scene.round(1)
        assert [_flag(task, "--node-rank") for task in (first, further)] == ["0", "1"]
        assert (first.name, further.name) == ("learner", "learner-1")
        assert [task.log_path.name for task in (first, further)] == ["learner.log", "learner-1.log"]
        assert _flag(first, "--timeout-s") == "1077"
        assert scene.keeper.child("learner").node == "n1"  # type: ignore[union-attr]
        first.ends(exit_codes.PEER_LOST)
        further.ends(1)
        again = await scene.round(2)
        rounds = [_flag(task, "--round") for task in scene.placed]
        assert rounds[0] == rounds[1] != rounds[2] == rounds[3]
        again[1].ends(1)  # the other one does not notice, and must not say that it leaves the batch that it holds
        await scene.round(3)
        assert again[0].killed == "was killed because learner-1 had ended"
        assert not again[0].stopped
        assert [text for text in scene.said if "restart" in text] == [
            "learner ended with code 1; restart 1 of 3",
            "learner ended with code 1; restart 2 of 3",
        ]
        assert scene.said[0] == "learner-1 on n2 has ended: the machines of learner end together"
        for number in (3, 4):
            (await scene.round(number))[0].ends(1)
        error = await scene.failure()
        assert isinstance(error, LaunchError)
        assert "once more after 3 restarts" in str(error)
        assert "learner.log ends:\nend of learner.log" in str(error)


async def test_a_lost_machine_costs_no_restart_whoever_notices_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        first, further = await scene.round(1)
        further.is_lost()
        await scene.round(2, free=("n1", "n3"))
        assert (first.stopped, first.killed) == (True, ""), "the batch is not blamed"
        first, further = scene.placed[-2:]
        first.ends(exit_codes.PEER_LOST)  # closed sockets tell sooner than the engine
        await scene.clock.advance(SETTLE_S / 2)
        further.is_lost()
        await scene.round(3)
        assert [text for text in scene.said if "restart" in text] == []
        assert scene.said == [
            "learner is lost: learner-1: node n2 is gone; looking for another place",
            "learner is lost: learner-1: node n3 is gone; looking for another place",
        ]


@pytest.mark.parametrize("which", [0, 1])
async def test_all_machines_leave_in_order_with_one_whose_node_is_taken_away_and_no_restart_is_counted(
    which: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        tasks = await scene.round(1)
        for task in tasks:
            task.stops_with = 0  # it has saved a checkpoint
        tasks[which].is_drained()
        await scene.round(2, free=("n3", "n4"))
        assert [(task.stopped, task.killed) for task in tasks] == [(True, "")] * 2
        assert scene.said == [
            f"learner leaves its node: Ray drains node n{which + 1}",
            f"learner is lost: Ray drains node n{which + 1}; looking for another place",
        ]


async def test_a_machine_on_a_node_that_lacks_something_is_tried_elsewhere_and_the_node_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        first, further = await scene.round(1)
        further.ends(exit_codes.UNFIT_NODE)
        await scene.round(2, free=("n1", "n3"))
        assert first.killed == "was killed because learner-1 had ended"
        assert scene.unfit == {"n2": "last words of learner-1"}
        assert scene.said[1:] == [
            "node n2 is left out from now on, and learner looks for another place: last words of learner-1"
        ]


async def test_the_others_wait_for_a_machine_without_a_place_and_nobody_is_blamed_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        scene.free = ["n1"]
        await scene.until(lambda: "learner-1" in scene.keeper.no_place)
        await scene.clock.advance(500)
        assert scene.keeper.child("learner") is None
        watch = FrozenWatch(launch=CONFIG.launch, keeper=scene.keeper, clock=scene.clock)
        _, further = await scene.round(1, free=("n2",))
        child, now_s = scene.keeper.child("learner"), int(scene.clock.now())
        assert child is not None
        assert child.started_s == further.started_s >= 500
        for second in range(now_s, now_s + 2 * 77):  # silent since before its start, but not for as long as it may be
            watch.services({"learner": second + 100.0}, asked_s=second)
        assert not child.killed
        watch.services({"learner": 1000.0}, asked_s=now_s + 2 * 77 + 2)
        assert "launch.ready_timeout_s" in child.killed
        await scene.round(2)
        assert scene.keeper.no_place == {}
        assert scene.said[0] == "waiting for a place for learner-1: no node has 1 free GPU"


async def test_who_gets_no_place_in_time_fails_the_run_by_name_and_the_others_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        scene.free = ["n1"]
        await scene.until(lambda: len(scene.placed) == 1)
        await scene.clock.advance(1001)
        assert "learner-1 had no place for 1000 s (launch.place_timeout_s): no node has" in str(await scene.failure())
        assert scene.placed[0].stopped


async def test_a_machine_that_ends_before_the_others_have_a_place_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        scene.free = ["n1"]
        await scene.until(lambda: len(scene.placed) == 1)
        scene.placed[0].ends(exit_codes.BAD_USAGE)
        scene.keeper.known.clear()
        error = await scene.failure()
        assert isinstance(error, ConfigError)
        assert "last words of learner" in str(error)
        assert scene.keeper.no_place == {}


async def test_a_machine_that_has_finished_sooner_ends_nobody_and_the_first_ones_end_is_the_learners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kept(tmp_path, monkeypatch) as scene:
        first, further = await scene.round(1)
        scene.over = True
        further.ends(0)
        await scene.clock.advance(600)
        assert first.alive, "it exports the model"
        first.ends(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert await scene.keeper.left("learner", within_s=1.0)
        assert scene.said == []
