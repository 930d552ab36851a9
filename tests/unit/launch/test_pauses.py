"""Restarts do not burn: pauses grow, and what dies while the disk is full is not counted."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sluice.config.schema import LaunchConfig
from sluice.errors import LaunchError
from sluice.launch import keeper as keeper_module
from sluice.launch.keeper import Keeper
from sluice.run_dir.full_disk import NoRoom
from sluice.testing import ManualClock


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

    async def pause_after(self, *, lived_s: float, code: int = 1) -> float:
        """How long the keeper waits after a death."""
        dead: Any = Dead(started_s=self.clock.now() - lived_s)
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
