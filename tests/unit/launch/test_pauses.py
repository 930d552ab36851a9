"""Restarts do not burn: pauses grow, and what dies while the disk is full, or with its node, is not counted."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sluice.config.schema import LaunchConfig
from sluice.errors import LaunchError
from sluice.launch import keeper as keeper_module
from sluice.launch.commands import Command
from sluice.launch.engines.port import LOST
from sluice.launch.keeper import Keeper
from sluice.run_dir.full_disk import NoRoom
from sluice.testing import ManualClock, assert_eventually
from sluice.v1 import coordinator_pb2 as pb


@dataclass
class Dead:
    """A process that has ended."""

    started_s: float
    name: str = "reward-0"
    killed: str = ""
    lost: str = ""
    log_path: Path | None = None

    def log_tail(self) -> str:
        return ""


class Scene:
    """A keeper whose disk may be full."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, max_restarts: int) -> None:
        self.clock, self.said, self.full = ManualClock(), list[str](), False
        self.folder = folder
        monkeypatch.setattr(keeper_module, "prove_room", self._prove_room)
        self.keeper = Keeper(
            launch=LaunchConfig(max_restarts=max_restarts),
            log_dir=folder,
            say=self.said.append,
            is_over=self._over,
            clock=self.clock,
        )
        self.keeper.known.add("reward-0")

    def _prove_room(self, folder: Path, needed_bytes: int) -> None:
        if self.full:
            raise NoRoom(folder, needed_bytes)

    async def _over(self) -> bool:
        return False

    async def pause_after(self, *, lived_s: float, code: int = 1, lost: str = "") -> float:
        """How long the keeper waits after a death."""
        dead: Any = Dead(started_s=self.clock.now() - lived_s, lost=lost)
        dying, began_s = asyncio.create_task(self.keeper.died(dead, code)), self.clock.now()
        while True:
            done, _ = await asyncio.wait([dying], timeout=0.02)
            if done:
                dying.result()
                return self.clock.now() - began_s
            await self.clock.advance(0.25)


async def test_pauses_grow_while_a_service_dies_soon_after_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, max_restarts=100)
    assert [await scene.pause_after(lived_s=1.0) for _ in range(5)] == pytest.approx([0, 0.5, 1, 2, 4], abs=0.26)
    assert await scene.pause_after(lived_s=3600.0) == pytest.approx(0, abs=0.26)
    assert await scene.pause_after(lived_s=1.0) == pytest.approx(0, abs=0.26)


async def test_a_service_lost_with_its_node_is_placed_again_without_being_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path, monkeypatch, max_restarts=1)
    pauses = [await scene.pause_after(lived_s=1.0, code=LOST, lost="node n2 is gone") for _ in range(4)]
    assert pauses == pytest.approx([0, 0.5, 1, 2], abs=0.26)
    assert set(scene.said) == {"reward-0 is lost: node n2 is gone; looking for another place"}
    await scene.pause_after(lived_s=100.0)
    with pytest.raises(LaunchError, match="once more after 1 restarts"):
        await scene.pause_after(lived_s=100.0)


class FullEngine:
    """An engine that has no place before `free`."""

    name = "full"

    def __init__(self) -> None:
        self.free = asyncio.Event()

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None: ...

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Any:
        waits("no node has 2 free GPUs")
        await self.free.wait()
        return Running(name=command.name)

    async def close(self) -> None: ...


@dataclass
class Running:
    """A task that goes on."""

    name: str
    node: str = "n1"
    alive: bool = True

    async def wait(self) -> int:
        return await asyncio.get_running_loop().create_future()

    async def notice(self) -> str:
        return await asyncio.get_running_loop().create_future()

    async def stop(self, **_: Any) -> None: ...


async def test_a_service_without_a_place_waits_named_and_the_run_fails_at_the_limit(tmp_path: Path) -> None:
    clock, engine, said = ManualClock(), FullEngine(), list[str]()
    launch = LaunchConfig(place_timeout_s=60.0)
    keeper = Keeper(launch=launch, log_dir=tmp_path, say=said.append, is_over=_never, clock=clock, engine=engine)
    command = Command(name="rollout-1", argv=["x"], environ={})
    keeper.keep(command)
    await assert_eventually(keeper.places)
    await clock.advance(59.0)
    (place,) = keeper.places()
    assert (place.service_id, place.node, place.waits_for) == ("rollout-1", "", "no node has 2 free GPUs")
    assert place.since_s == pytest.approx(59.0, abs=1.0)
    engine.free.set()
    await assert_eventually(lambda: keeper.places() == [pb.Place(service_id="rollout-1", node="n1")])
    assert said == ["waiting for a place for rollout-1: no node has 2 free GPUs"]
    engine.free.clear()
    keeper.keep(Command(name="rollout-2", argv=["x"], environ={}))
    await assert_eventually(lambda: "rollout-2" in keeper.no_place)
    await clock.advance(61.0)
    with pytest.raises(LaunchError, match=r"rollout-2 had no place for 60 s \(launch.place_timeout_s\): no node has 2"):
        await keeper.failed
    assert keeper.no_place == {}
    await keeper.stop(last="", at_once=asyncio.Event())


async def _never() -> bool:
    return False


async def test_deaths_on_a_full_disk_are_named_and_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, monkeypatch, max_restarts=1)
    scene.full = True
    pauses = [await scene.pause_after(lived_s=1.0) for _ in range(4)]
    assert pauses == pytest.approx([1, 1, 1, 2], abs=0.26)
    assert all(
        f"reward-0 ended with code 1, and is started again: the disk under {tmp_path}" in text for text in scene.said
    )
    scene.keeper.known.clear()  # nor is a service that has not even started then
    await scene.pause_after(lived_s=1.0)
    scene.full = False
    scene.keeper.known.add("reward-0")
    await scene.pause_after(lived_s=100.0)
    with pytest.raises(LaunchError, match="once more after 1 restarts"):
        await scene.pause_after(lived_s=100.0)
