"""Places tasks on a Ray cluster: room by a placement group, an actor in it, the task's process as the actor's child.

 who waits        for what                     unblocked by
 `open`           the cluster's head           its answer, JOIN_S
 `start`          room on one node             Ray's scheduler, a node that is added, the caller's patience
 `start`          an actor on that node        its first answer; Ray's word that it died
The placement groups and actors belong to this process's job: Ray ends them when this process is gone.
"""

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ray.exceptions import RayActorError, RayError, RayTaskError

from sluice.clock import Clock, SystemClock
from sluice.errors import LaunchError, SluiceError
from sluice.launch.commands import Command, Needs
from sluice.launch.engines import ray_cluster as cluster
from sluice.launch.engines.ray_drain import watch_drains
from sluice.launch.engines.ray_task import RayTask, result

JOIN_S = 20.0
"""Limit for `ray.init`, which takes 2 to 4 s on a slow machine."""
LEAVE_S = 20.0
"""Limit for the end of what is still placed, and for `ray.shutdown`."""
MOST_SEEN = 1000
"""Above the nodes of any cluster that Ray has."""
ASK_S, SAY_S = 0.1, 1.0
"""How often Ray is asked for the state of a placement group; the time after which room that is not there is missing."""


class RayEngine:
    """Engine of `--on ray`. One in a process: Ray's connection belongs to the process."""

    name = "ray"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._thread: cluster.RayThread | None = None
        self._address = ""
        self._node_timeout_s = 0.0
        self._seen: dict[str, Needs] = {}
        """What the last MOST_SEEN nodes have, by id, as far as they are fit: one that is gone may come back."""
        self._unfit: dict[str, str] = {}
        """The ids of nodes that lack what the run needs, and what. A node that is started anew has a new id."""
        self._tasks: set[RayTask] = set()
        self._drains: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)

    @property
    def address(self) -> str:
        """Where Ray itself reaches the node of this process."""
        return self._address

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None:
        """Engine.open."""
        self._node_timeout_s, self._thread = node_timeout_s, cluster.RayThread()
        try:
            async with asyncio.timeout(JOIN_S):
                self._address = await self._thread.call(cluster.join)
        except TimeoutError:
            address = os.environ.get("RAY_ADDRESS") or "the address in Ray's own files"
            self._thread = None
            raise LaunchError(
                f"no Ray cluster has taken this process in for {JOIN_S:.0f} s; at {address} is none, or its head hangs "
                "(`ray status` asks it); is RAY_ADDRESS the head's HOST:PORT?"
            ) from None
        except SluiceError:
            self._thread = None
            raise
        _take_sigterm_back()
        draining = partial(self._thread.call, cluster.draining)
        self._drains = asyncio.create_task(
            watch_drains(draining, lambda: self._tasks, clock=self._clock), name="drains"
        )

    async def gpus(self) -> int:
        """How many GPUs the cluster's nodes have now, free or not."""
        assert self._thread is not None
        return int(sum(has.get("GPU", 0) for _, has in (await self._thread.call(cluster.nodes)).values()))

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> RayTask:
        """Engine.start."""
        assert not command.said, f"{command.name}: a secret is for processes beside the launcher"
        assert self._thread is not None, "open comes first"
        while True:
            avoid = frozenset(self._unfit).union(await self._thread.call(cluster.draining))
            place = cluster.Place(name=f"{command.name}.{next(self._numbers)}", needs=command.needs, avoid=avoid)
            try:
                if (task := await self._placed(command, place, log_path, waits)) is not None:
                    return task
            except BaseException:
                await self._give_back(place)
                raise
            await self._give_back(place)

    async def exclude(self, node: str, why: str) -> None:
        """Engine.exclude."""
        assert self._thread is not None
        for node_id, (address, _) in (await self._thread.call(cluster.nodes)).items():
            if address == node:
                self._unfit[node_id] = f"{node} lacks something ({why})"
                self._seen.pop(node_id, None)

    async def close(self) -> None:
        """Engine.close."""
        if self._thread is None:
            return
        if self._drains is not None:
            self._drains.cancel()
        left = [task for task in self._tasks if task.alive]
        for task in left:
            task.kill("the launcher ends")
        if left:
            await asyncio.wait([asyncio.ensure_future(task.wait()) for task in left], timeout=LEAVE_S)
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._thread.call(cluster.leave)
        except TimeoutError:
            pass  # no head: nothing can be given back, and nothing is left there
        self._thread.close()
        self._thread = None

    async def _placed(
        self, command: Command, place: cluster.Place, log_path: Path, waits: Callable[[str], None]
    ) -> RayTask | None:
        """Places and starts the task; None when its actor or node was lost meanwhile."""
        assert self._thread is not None
        await self._refuse_too_large(command)
        await self._thread.call(cluster.ask_for, place)
        node_id = await self._room(place, waits)
        started_s = time.monotonic()
        host = await self._thread.call(cluster.occupy, place)
        try:
            await result(host.start.remote(command, log_path, python=sys.executable, folder=os.getcwd()))
        except RayError as error:
            node = (await self._node(node_id)) or "that is gone"
            if isinstance(error, RayTaskError) and isinstance(error.cause, SluiceError):
                raise error.cause from None
            if isinstance(error, RayActorError) and not error.actor_init_failed:
                waits(f"its actor on node {node} was lost while it started: {_last_line(error)}")
                await asyncio.sleep(SAY_S)
                return None
            raise LaunchError(_cannot_start(command, node, error)) from error
        node_id = (
            await self._thread.call(cluster.node_id_of, place) or node_id
        )  # Ray moves room whose node died meanwhile
        node = await self._node(node_id) or node_id
        task = RayTask(
            name=command.name,
            node=node,
            node_id=node_id,
            log_path=log_path,
            started_s=started_s,
            host=host,
            node_timeout_s=self._node_timeout_s,
            why_dead=partial(self._why_dead, node_id, node),
            give_back=partial(self._give_back, place),
        )
        self._tasks = {each for each in self._tasks if each.alive} | {task}
        return task

    async def _node(self, node_id: str) -> str:
        """The address of a living node; empty for one that is gone."""
        assert self._thread is not None
        return (await self._thread.call(cluster.nodes)).get(node_id, ("", {}))[0]

    async def _room(self, place: cluster.Place, waits: Callable[[str], None]) -> str:
        """The id of the node that has room; says what is missing whenever that changes."""
        assert self._thread is not None
        since_s, said = time.monotonic(), ""
        while not (node_id := await self._thread.call(cluster.node_id_of, place)):
            if time.monotonic() - since_s > SAY_S:
                free = await self._thread.call(cluster.free)
                why = f"no node has {words(place.needs)} free; all nodes together have {words(free)} free"
                if why != said:
                    waits(why)
                    said = why
            await asyncio.sleep(min(SAY_S, max(ASK_S, (time.monotonic() - since_s) / 10)))
        return node_id

    async def _refuse_too_large(self, command: Command) -> None:
        """Raises LaunchError for a task that neither a node of the cluster nor one that was there could hold."""
        assert self._thread is not None
        for node_id, (_, has) in (await self._thread.call(cluster.nodes)).items():
            if node_id not in self._unfit:
                self._seen[node_id] = Needs(cpus=int(has.get("CPU", 0)), gpus=int(has.get("GPU", 0)))
        while len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        needs = command.needs
        if any(has.cpus >= needs.cpus and has.gpus >= needs.gpus for has in self._seen.values()):
            return
        if not await self._thread.call(cluster.grows):
            has = " or ".join(sorted({words(each) for each in self._seen.values()})) or "none that the run can use"
            left_out = "".join(f"; {why}" for why in self._unfit.values())
            raise LaunchError(
                f"{command.name} needs {words(needs)} on one node, and the nodes of the Ray cluster have {has}{left_out}; "
                "add a larger node, or have the service take less"
            )

    async def _why_dead(self, node_id: str, node: str, error: RayError) -> str:
        living = await self._node(node_id)
        return f"its actor on node {node} died: {_last_line(error)}" if living else f"node {node} is gone"

    async def _give_back(self, place: cluster.Place) -> None:
        assert self._thread is not None
        await self._thread.call(cluster.give_back, place)


def _take_sigterm_back() -> None:
    """Ray's core takes SIGTERM for a crash: it would print a stack, call this process's handler, and abort 3 s later."""
    handler = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)


def words(needs: Needs) -> str:
    """`2 GPUs and 1 CPU`; without GPUs `4 CPUs`."""
    cpus = f"{needs.cpus} CPU{'s' * (needs.cpus != 1)}"
    return f"{needs.gpus} GPU{'s' * (needs.gpus != 1)} and {cpus}" if needs.gpus else cpus


def _cannot_start(command: Command, node: str, error: RayError) -> str:
    fix = ""
    if "No module named" in str(error):
        fix = "; the Python of every node needs Sluice: install it there, or hand in a runtime environment (docs/clusters.md)"
    return f"{command.name} cannot be started on node {node}: {_last_line(error)}{fix}"


def _last_line(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
