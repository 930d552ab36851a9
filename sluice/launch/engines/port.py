"""The port between a run's keeper and what places the run's services: this machine (local.py), Ray (ray.py), Slurm (slurm.py).

The control plane - Redis, coordinator, keeper - stays with the launcher. Rewards, rollouts and the machines of the learner are
tasks: one process each on some node, in a session of its own, whose output goes to a log in the run directory.

 who waits       for what                                unblocked by
 `Engine.start`  a node with room for what a task needs  the engine's scheduler; the keeper's `launch.place_timeout_s`
 `Task.wait`     the end of a task's process             the exit; the loss of the node, which the engine finds out by itself
 `Task.notice`   the word that a node will be taken away the engine, where a cluster says such things; the caller gives up
An engine keeps three promises that one contract suite (tests/contract/engine_tasks.py) checks on each of them: a task ends
when the launcher is gone, however the launcher went; two tasks of one node never share a GPU; a node that is gone makes its
tasks `lost`, never silent.

What an engine sends - argument lists, environments, runtime environments, files - a cluster's own tools show to others: it
holds no secret. A task reads its role's credentials from the folder that SLUICE_CREDENTIALS names. A command may refuse its
node with UNFIT_NODE and a message, before anything heavy (checked.py); so a task's output must reach the launcher from a node
that does not see the run directory, too.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sluice.launch.commands import Command

LOST = -128
"""What `Task.wait` returns for a lost task: its exit code is not known. No signal has this number."""


class Task(Protocol):
    """One placed process."""

    @property
    def name(self) -> str:
        """The service id, `rollout-0`."""
        ...

    @property
    def node(self) -> str:
        """The node that the process runs on, by the name that the engine's own tools print."""
        ...

    @property
    def log_path(self) -> Path | None: ...

    @property
    def started_s(self) -> float:
        """When the process was placed and started: monotonic seconds of the launcher."""
        ...

    @property
    def alive(self) -> bool:
        """Whether the process is not known to have ended."""
        ...

    @property
    def killed(self) -> str:
        """Why this launcher killed the process; empty if the launcher did not."""
        ...

    @property
    def lost(self) -> str:
        """Why nobody knows how the process ended, `node n2 is gone`; empty for a process with an exit code."""
        ...

    async def wait(self) -> int:
        """The exit code, minus the signal's number for a process ended by a signal, LOST for a lost one."""
        ...

    async def notice(self) -> str:
        """Returns when the cluster is about to take the node away, with the engine's words, `Ray drains node n2`.

        Whoever hears it should stop the task while the node is there; the task is then lost, whatever its exit code. Waits
        for ever on an engine without such notices.
        """
        ...

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """SIGTERM, after `grace_s` or once `at_once` is set SIGKILL, to the whole session; returns when the task is over and
        its place is free. Never raises for a task that is over or lost."""
        ...

    def kill(self, why: str) -> None:
        """SIGKILL to the whole session; `wait` returns soon after."""
        ...

    def log_tail(self) -> str:
        """The last lines of the log, for an error message."""
        ...

    def last_words(self) -> str:
        """The process's own last message, else the end of its log."""
        ...


class Engine(Protocol):
    """Places tasks. Use inside one event loop."""

    name: str
    """What `--on` calls it."""

    @property
    def address(self) -> str:
        """This machine's address on the cluster's own network, as far as the opened engine knows one; else empty, and the
        launcher takes the address of its default route. The coordinator listens there (`network.bind: auto`)."""
        ...

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None:
        """Reaches the cluster. A node that is silent for `node_timeout_s` is lost.

        Raises ConfigError or LaunchError within seconds - which cluster, what is wrong, the fix - and leaves nothing behind.
        """
        ...

    async def gpus(self) -> int | None:
        """How many GPUs the nodes of the opened cluster have now, free or not. None: the launcher itself shares out those of
        its machine, and `command.environ` names them. Otherwise the engine gives a task `command.needs.gpus` devices and sets
        CUDA_VISIBLE_DEVICES for it."""
        ...

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Task:
        """Places and starts a task where there is room for `command.needs`.

        Waits for room as long as the caller does; each new reason goes to `waits`, `no node has 2 free GPUs`. A caller that
        cancels leaves nothing placed or queued. `command.said` must be empty: only processes beside the launcher get secrets.
        The process gets `command.environ` beside the environment of its node. What an engine writes down for the cluster, a
        runtime environment or a job file, has nothing else of the launcher's environment.
        Raises LaunchError when no node could ever hold the task or the process cannot be started, DiskFull without room for
        the log.
        """
        ...

    async def exclude(self, node: str, why: str) -> None:
        """Places nothing more on a node, `Task.node`, that lacks what the run needs. Where no other node is left, or comes,
        `start` raises LaunchError with the reason."""
        ...

    async def close(self) -> None:
        """Gives back everything that is still placed and leaves the cluster. Safe without `open`."""
        ...
