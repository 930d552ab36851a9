"""Places tasks on this machine, as children of the launcher (processes.py). There is always room."""

from collections.abc import Callable
from pathlib import Path

from sluice.addresses import loopback
from sluice.launch.commands import Command
from sluice.launch.processes import Child, start


class LocalEngine:
    """Engine of `--on local`."""

    name = "local"

    @property
    def address(self) -> str:
        """Engine.address: nobody else has to reach this machine."""
        return loopback()

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None:
        """Engine.open: nothing to reach, and this machine cannot be lost."""

    async def gpus(self) -> None:
        """Engine.gpus: the launcher knows this machine's."""

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Child:
        """Engine.start."""
        return await start(command, log_path=log_path)

    async def exclude(self, node: str, why: str) -> None:
        """Engine.exclude: there is one node, and the launcher runs on it."""

    async def close(self) -> None:
        """Engine.close: the keeper has stopped each child."""
