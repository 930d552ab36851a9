"""An engine whose tasks first look at their node: is it this Sluice, is the run directory there, is the model there?

A program before each task's own asks this on the node (sluice/process/node_check.py), so that neither an engine nor a service
knows of it. On a node that fails, the task ends with UNFIT_NODE and one message.
"""

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sluice.launch.commands import Command
from sluice.launch.engines.port import Engine, Task
from sluice.process import node_check
from sluice.run_dir.full_disk import DiskWaits
from sluice.run_dir.private import open_private

MARK = ".launcher-"
"""How the name of the file begins that says to the nodes which directory is the run's."""


class CheckedEngine:
    """`engine`, for one run; implements Engine."""

    def __init__(self, engine: Engine, *, model_path: str, disk: DiskWaits) -> None:
        self._engine, self._model_path, self._disk = engine, os.path.abspath(model_path), disk
        self.name = engine.name
        self._mark, self._build = Path(), ""

    @property
    def address(self) -> str:
        """Engine.address."""
        return self._engine.address

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None:
        """Engine.open; leaves the mark in the run directory."""
        await self._engine.open(run_dir=run_dir, node_timeout_s=node_timeout_s)
        self._mark, self._build = await self._disk.write(_marked, run_dir), await asyncio.to_thread(node_check.build)

    async def gpus(self) -> int | None:
        """Engine.gpus."""
        return await self._engine.gpus()

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Task:
        """Engine.start."""
        return await self._engine.start(self.checked(command), log_path=log_path, waits=waits)

    def checked(self, command: Command) -> Command:
        """The command that looks at its node before it becomes `command`."""
        assert self._build, "open comes first"
        model_path = "" if command.name.startswith("reward") else self._model_path
        facts = [command.name, str(self._mark.parent), self._mark.name, self._build, model_path, _working_directory()]
        return replace(command, argv=[sys.executable, "-I", "-S", node_check.__file__, *facts, *command.argv])

    async def exclude(self, node: str, why: str) -> None:
        """Engine.exclude."""
        await self._engine.exclude(node, why)

    async def close(self) -> None:
        """Engine.close; takes the mark away."""
        await self._engine.close()
        if self._build:
            with contextlib.suppress(OSError):  # of a disk that is away by now; the next start removes it
                self._mark.unlink(missing_ok=True)


def _marked(run_dir: Path) -> Path:
    """Leaves a mark under a new name: network file systems remember for a while that a name was missing."""
    for former in run_dir.glob(f"{MARK}*"):
        former.unlink(missing_ok=True)
    mark = run_dir / f"{MARK}{uuid.uuid4().hex}"
    open_private(mark, "wb").close()
    return mark


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed under this process; the run directory takes its place
        return ""
