"""What runs on a node of Ray for one task: an actor, and the task's process as the actor's child.

The process is in a session of its own and gets SIGTERM when the actor dies, however the actor dies: with the launcher, with
its node's raylet, by `ray kill`. This module imports no Ray: nothing of Ray reaches the process but what its node is given.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sluice.launch.commands import Command, inherited
from sluice.launch.processes import Child, start

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Ray leaves all GPUs of a node to what asks for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The end of a process, with the end of its log as this node sees the log: the launcher may not see the file."""

    code: int
    """The exit code; minus the signal's number."""
    tail: str
    last_words: str


class Host:
    """The actor's class, for one task. Every method may be called at any time."""

    def __init__(self) -> None:
        self._child: Child | None = None

    async def start(self, command: Command, log_path: Path, *, python: str, folder: str) -> None:
        """Starts the process. The launcher's Python, `python`, stands for this node's own; the launcher's working
        directory, `folder`, is taken where this node has it.

        Raises LaunchError or DiskFull, as processes.start.
        """
        with contextlib.suppress(OSError):
            os.chdir(folder)
        argv = [sys.executable if word == python else word for word in command.argv]
        alone = NO_GPU if command.needs.gpus == 0 else {}
        command = replace(command, argv=argv, environ={**alone, **command.environ})
        self._child = await start(command, log_path=log_path, inherits=_of_this_node())

    async def wait(self) -> Ended:
        """How the process has ended, once it has."""
        assert self._child is not None
        code = await self._child.wait()
        return Ended(code=code, tail=self._child.log_tail(), last_words=self._child.last_words())

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL, to the whole session. A second call with less grace is the one that counts."""
        if self._child is not None:
            await asyncio.shield(self._child.stop(grace_s=grace_s))

    async def kill(self) -> None:
        """SIGKILL to the whole session."""
        if self._child is not None:
            self._child.kill("")


def _of_this_node() -> Mapping[str, str]:
    """The node's environment without Ray's own variables, by which a library takes its process for one of Ray's."""
    return {name: value for name, value in inherited().items() if not name.startswith("RAY_")}
