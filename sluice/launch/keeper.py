"""Keeps the services of a run alive, wherever the engine places each (engines/port.py).

 who waits            for what                                     unblocked by
 a service's keeper   the exit of its process                      the exit, or `stop`
 a service's keeper   a pause, before a service that dies again    the clock
                      and again is started
 a service's keeper   room on the disk of the run                  whoever frees space
 a service's keeper   a place for a service                        the engine; `launch.place_timeout_s` fails the run
A service that dies is started again, up to `launch.max_restarts` times within `launch.restart_window_s`. A service that
dies before its first registration, or that ends with code 2 because it was started wrongly, fails the run: `failed` then
holds a LaunchError with the end of the service's log. What dies while the disk is full, is
lost with its node, or comes to a node that lacks what the run needs is started again without being counted.
"""

import asyncio
import signal
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sluice.clock import Clock, SystemClock
from sluice.config.schema import LaunchConfig
from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import Command
from sluice.launch.embedded_redis import ROOM_BYTES
from sluice.launch.engines.local import LocalEngine
from sluice.launch.engines.port import Engine, Task
from sluice.launch.leaving import until_end
from sluice.launch.machines import start_together
from sluice.limits import NAME_CHARACTERS
from sluice.process import exit_codes
from sluice.report.figures import printable
from sluice.run_dir.full_disk import DiskWaits, NoRoom, prove_room
from sluice.v1 import coordinator_pb2 as pb

QUICK_DEATH_S = 60.0
"""A service that lived longer is started again at once. Chosen: above the start of any service but a large engine's, which
takes its time by itself."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Pauses before the second, third ... start in a row: 0.5, 1, 2 ... 30 s."""

FULL_DISK_PAUSE_S = 1.0
"""The least pause while the disk is full."""


class Exited(Protocol):
    """A process that has ended (processes.py)."""

    @property
    def name(self) -> str: ...
    @property
    def killed(self) -> str: ...
    @property
    def log_path(self) -> Path | None: ...
    def log_tail(self) -> str: ...

    def last_words(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPlace:
    """A service that the engine has no place for yet."""

    since_s: float
    """By the keeper's clock."""
    why: str
    """In the engine's words, `no node has 2 free GPUs`."""


class Keeper:
    """The processes of one run, each kept alive by a task. Use inside one event loop."""

    def __init__(
        self,
        *,
        launch: LaunchConfig,
        log_dir: Path,
        say: Callable[[str], None],
        is_over: Callable[[], Awaitable[bool]],
        registered: Callable[[], Awaitable[Collection[str]]] | None = None,
        clock: Clock | None = None,
        disk: DiskWaits | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._launch, self._log_dir, self._say, self._is_over = launch, log_dir, say, is_over
        self._registered = registered
        """The services that the coordinator lists now: one may register and die before anybody has put it into `known`."""
        self._clock = clock or SystemClock()
        self._here = LocalEngine()
        self._engine = engine or self._here
        self.no_place: dict[str, NoPlace] = {}
        """The services that wait for a place now."""
        self._disk = disk or DiskWaits(clock=self._clock)
        self._quick_deaths: Counter[str] = Counter()
        """How often in a row each service has died soon after its start."""
        self._restarts: dict[str, deque[float]] = {}
        """The times of each service's restarts within the restart window."""
        self._children: dict[str, Task] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self.ending = False
        self.known: set[str] = set()
        """Services that were registered at least once."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets an exception when the run cannot go on."""

    def keep(self, command: Command, *, running: Task | None = None, requested: bool = False) -> None:
        """Has a service kept alive. A `requested` service was asked for during the run, which goes on without the service."""
        work = self._keep_requested(command) if requested else self._keep_alive(command, running)
        self.supervise(command.name, work)
        if running is not None:
            self._children[command.name] = running

    def supervise(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` until the end of the run; an exception of `work` fails the run."""
        task = self._keepers[name] = asyncio.create_task(work, name=f"keep-{name}")
        task.add_done_callback(self._ended)

    def judge(self, child: Exited, code: int) -> None:
        """Says that a process is started again, or raises LaunchError when the process must not be started again."""
        limit, window_s = self._launch.max_restarts, self._launch.restart_window_s
        restarts, now = self._restarts.setdefault(child.name, deque()), self._clock.now()
        while restarts and now - restarts[0] >= window_s:
            restarts.popleft()
        how = child.killed or f"ended with {_how(code)}"
        if child.name not in self.known:
            if code in (exit_codes.BAD_USAGE, exit_codes.UNFIT_NODE):
                more = f" ({child.log_path.name} has more)" if child.log_path else ""
                raise ConfigError(f"{child.last_words()}{more}")
            why = "while starting"
        elif code == exit_codes.BAD_USAGE:
            why = "because it was started wrongly"
        elif len(restarts) >= limit:
            why = f"once more after {limit} restarts in {window_s:g} s (launch.max_restarts, launch.restart_window_s)"
        else:
            restarts.append(now)
            self._say(f"{child.name} {how}; restart {len(restarts)} of {limit}")
            return
        kind = ConfigError if code == exit_codes.BAD_USAGE else LaunchError
        raise kind(f"{child.name} {how} {why}; {child.log_path} ends:\n{child.log_tail()}")

    async def died(self, child: Task, code: int) -> None:
        """Returns when a process may be started again, or raises LaunchError when the process must not be started again.

        A death while the disk is full, or with the node, is not counted, and no fault of the service.
        """
        if child.name not in self.known and self._registered is not None:
            self.known.update(await self._registered())
        if child.lost:
            self._say(f"{child.name} is lost: {child.lost}; looking for another place")
            await self._clock.sleep(self._pause_s(child))
            return
        if code == exit_codes.UNFIT_NODE and child.name in self.known:
            why = "; ".join(child.last_words().splitlines())
            self._say(f"node {child.node} is left out from now on, and {child.name} looks for another place: {why}")
            await self._engine.exclude(child.node, why)
            await self._clock.sleep(self._pause_s(child))
            return
        full = await asyncio.to_thread(self._no_room)
        if full is None or code == exit_codes.BAD_USAGE:
            self.judge(child, code)
            await self._clock.sleep(self._pause_s(child))
            return
        self._say(f"{child.name} {child.killed or f'ended with {_how(code)}'}, and is started again: {full}")
        await self._clock.sleep(max(FULL_DISK_PAUSE_S, self._pause_s(child)))

    def _no_room(self) -> NoRoom | None:
        """The error of a disk that is full; None for any other disk."""
        try:
            prove_room(self._log_dir, ROOM_BYTES)
        except NoRoom as full:
            return full
        except OSError:
            return None  # no folder, no permission: what cannot be written for another reason
        return None

    def _pause_s(self, child: Task) -> float:
        """0 after a first death; grows with deaths in a row, each within QUICK_DEATH_S of the start."""
        quick = self._clock.now() - child.started_s < QUICK_DEATH_S
        deaths = self._quick_deaths[child.name] = self._quick_deaths[child.name] + 1 if quick else 0
        return min(FIRST_PAUSE_S * 2 ** (deaths - 2), LONGEST_PAUSE_S) if deaths > 1 else 0.0

    def child(self, name: str) -> Task | None:
        """The process of a kept service; None while the service has no process."""
        child = self._children.get(name)
        return child if child is not None and child.alive else None

    def places(self) -> list[pb.Place]:
        """Where each kept service is, or why it has no place, for the coordinator's status."""
        placed = {
            name: pb.Place(service_id=name, node=child.node) for name, child in self._children.items() if child.alive
        }
        for name, waits in self.no_place.items():
            why, since_s = printable(waits.why)[:NAME_CHARACTERS], self._clock.now() - waits.since_s
            placed[name] = pb.Place(service_id=name, waits_for=why, since_s=since_s)
        return list(placed.values())

    def names(self, role: str) -> set[str]:
        """The kept replicas of a role."""
        return {name for name, task in self._keepers.items() if name.startswith(f"{role}-") and not task.done()}

    async def end(self, name: str) -> None:
        """Ends one service for good."""
        keeping = self._keepers.pop(name)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)  # a start under way gives its place back
        if child := self._children.pop(name, None):
            await child.stop(grace_s=self._launch.grace_s)

    async def left(self, name: str, *, within_s: float) -> bool:
        """Whether a service leaves by itself within `within_s`; true at once for a service that is not kept."""
        if task := self._keepers.get(name):
            await asyncio.wait([task], timeout=within_s)
        return task is None or task.done()

    async def stop(self, *, last: str, at_once: asyncio.Event) -> None:
        """Ends every service, `last` after the others; without grace once `at_once` is set."""
        self.ending = True
        for task in self._keepers.values():
            task.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        grace_s = self._launch.grace_s
        others = [child for name, child in self._children.items() if name != last]
        await asyncio.gather(*(child.stop(grace_s=grace_s, at_once=at_once) for child in others))
        if child := self._children.get(last):
            await child.stop(grace_s=grace_s, at_once=at_once)
        self.failed.cancel()

    async def _keep_requested(self, command: Command) -> None:
        try:
            await self._keep_alive(command, None)
        except (LaunchError, ConfigError) as error:
            self._say(str(error))

    async def _keep_alive(self, command: Command, running: Task | None) -> None:
        """Starts and restarts one service until the run ends."""
        while not self.ending:
            child = running or await self._disk.until(partial(self._started, command))
            running, self._children[command.name] = None, child
            code = await until_end(child, grace_s=self._launch.grace_s, say=self._say)
            if code == 0 and await self._is_over():
                return  # a service also ends with code 0 when the run has ended or somebody has sent SIGTERM
            if code == exit_codes.AGAIN:
                self._say(f"{child.name} has ended to be started again")
                continue
            await self.died(child, code)

    async def _started(self, command: Command) -> Task:
        """Starts a service, on one machine or on several."""
        if command.machines == 1:
            return await self._placed(command)
        grace_s = self._launch.grace_s
        return await start_together(command, place=self._placed, clock=self._clock, grace_s=grace_s, say=self._say)

    async def _placed(self, command: Command) -> Task:
        """Starts a service where the engine has room; raises LaunchError when the engine has had none for too long."""
        engine = self._here if command.here else self._engine
        since_s, limit_s = self._clock.now(), self._launch.place_timeout_s

        def waits(why: str) -> None:
            if command.name not in self.no_place:
                self._say(f"waiting for a place for {command.name}: {why}")
            self.no_place[command.name] = NoPlace(since_s=since_s, why=why)

        log_path = self._log_dir / f"{command.name}.log"
        starting = asyncio.ensure_future(engine.start(command, log_path=log_path, waits=waits))
        patience = asyncio.ensure_future(self._clock.sleep(limit_s))
        placed: Task | None = None
        try:
            await asyncio.wait([starting, patience], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                patience.cancel()
                placed = starting.result()
                return placed
            why = self.no_place[command.name].why if command.name in self.no_place else "its engine does not say why"
            raise LaunchError(f"{command.name} had no place for {limit_s:.0f} s (launch.place_timeout_s): {why}")
        finally:
            self.no_place.pop(command.name, None)
            if placed is None:  # what is placed is not waited for here: a caller that cancels would lose it
                for each in (starting, patience):
                    each.cancel()
                (found, _) = await asyncio.gather(starting, patience, return_exceptions=True)
                if not isinstance(found, BaseException):  # a place that came as the caller gave up
                    await found.stop(grace_s=0.0)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) and not self.failed.done():
            self.failed.set_exception(error)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
