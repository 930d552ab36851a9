"""A service that is several processes on several machines, as one task: the learner, where an engine places its machines.

 who waits          for what                                     unblocked by
 `start_together`   a place for each machine                     the engine; the first machine that ends meanwhile
 `Machines.wait`    the end of the round                         see below
A round is one start of all machines. The machines end together, because no rank can go on without the others. When one has
failed, the others are killed: a death in which the learner says that it leaves would not count against the batch that it
held. When one is lost, the others are stopped, and the batch is not blamed. A machine may tell by its exit code that it ended
because of another one; then that other one gets SETTLE_S to end by itself. So a broken round is one death, whose cause is the
machine that failed by itself, and a round that a lost machine broke is lost. A machine other than the first that ends with 0
has only finished sooner; the first one's 0 ends the round.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sluice.clock import Clock
from sluice.launch.commands import Command, machine_command
from sluice.launch.engines.port import LOST, Task
from sluice.process import exit_codes

SETTLE_S = 5.0
"""Chosen: ranks see a closed socket at once, torchrun the end of a rank of its machine within a second."""

_EFFECTS = (0, exit_codes.PEER_LOST, exit_codes.NOT_JOINED)
"""Exit codes of machines that ended because of another machine."""


async def start_together(
    command: Command,
    *,
    place: Callable[[Command], Awaitable[Task]],
    clock: Clock,
    grace_s: float,
    say: Callable[[str], None],
) -> "Machines":
    """Places `command.machines` processes with `place`; returns when all run, or when one has ended before.

    Raises what `place` raises; whoever is placed then is ended, and no process is left either when the caller cancels.
    """
    round_name = uuid.uuid4().hex
    commands = [machine_command(command, number, round_name=round_name) for number in range(command.machines)]
    placing = [asyncio.ensure_future(place(each)) for each in commands]
    ends: list[asyncio.Future[int]] = []
    try:
        while (waiting := [each for each in placing if not each.done()]) and not any(end.done() for end in ends):
            await asyncio.wait([*waiting, *ends], return_when=asyncio.FIRST_COMPLETED)
            ends += [asyncio.ensure_future(each.result().wait()) for each in waiting if each.done()]
        for each in waiting:
            each.cancel()
        found = await asyncio.gather(*placing, return_exceptions=True)
    except BaseException:
        await _end(placing)
        raise
    finally:
        for end in ends:
            end.cancel()
    tasks = [each for each in found if not isinstance(each, BaseException)]
    return Machines(command, tasks, clock=clock, grace_s=grace_s, say=say)


async def _end(placing: Sequence[asyncio.Future[Task]]) -> None:
    """Ends what has a place, and the search for the other places."""
    for each in placing:
        each.cancel()
    found = await asyncio.gather(*placing, return_exceptions=True)
    # Without grace: a round that has not begun has nothing to save.
    await asyncio.gather(*(each.stop(grace_s=0.0) for each in found if not isinstance(each, BaseException)))


class Machines:
    """The tasks of one round as one task (engines/port.py)."""

    def __init__(
        self, command: Command, tasks: Sequence[Task], *, clock: Clock, grace_s: float, say: Callable[[str], None]
    ) -> None:
        """`tasks` are fewer than `command.machines` where one ended before all had a place."""
        self.name, self.tasks = command.name, tuple(tasks)
        self.killed, self.lost = "", ""
        self._leaves = ""
        """Why all leave in order."""
        self.started_s = max(task.started_s for task in tasks)
        """When the last machine was placed, so that nobody is blamed for the wait for a place."""
        self._clock, self._grace_s, self._say = clock, grace_s, say
        self._ended: list[tuple[Task, int]] = []
        """In the order of the ends."""
        self._cause = self.tasks[0]
        self._broken, self._explained = asyncio.Event(), asyncio.Event()
        if len(tasks) < command.machines:
            self._broken.set()
        self._over = asyncio.create_task(self._round(), name=f"round-{command.name}")

    @property
    def node(self) -> str:
        """Task.node: the first machine's, whose rank 0 is the service that registers; that of the machine that failed."""
        return self._cause.node

    @property
    def log_path(self) -> Path | None:
        """The log of the machine that failed; of the first one before."""
        return self._cause.log_path

    @property
    def alive(self) -> bool:
        """Task.alive."""
        return not self._over.done()

    async def wait(self) -> int:
        """Task.wait: the exit code of the machine that failed, LOST for a round that lost a machine."""
        return await asyncio.shield(self._over)

    async def notice(self) -> str:
        """Task.notice, for any machine: the ranks leave in order only together."""
        noticed = [asyncio.ensure_future(task.notice()) for task in self.tasks]
        try:
            done, _ = await asyncio.wait(noticed, return_when=asyncio.FIRST_COMPLETED)
            self._leaves = done.pop().result()
            return self._leaves
        finally:
            for each in noticed:
                each.cancel()

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Task.stop, of all machines."""
        await asyncio.gather(*(task.stop(grace_s=grace_s, at_once=at_once) for task in self.tasks))
        await self.wait()

    def kill(self, why: str) -> None:
        """Task.kill, of all machines."""
        self.killed = why
        for task in self.tasks:
            task.kill(why)

    def log_tail(self) -> str:
        """Of the machine that failed."""
        return self._cause.log_tail()

    def last_words(self) -> str:
        """Of the machine that failed."""
        return self._cause.last_words()

    async def _round(self) -> int:
        everybody = asyncio.gather(*(self._until_end(task) for task in self.tasks))
        await self._broken.wait()
        patience = [self._clock.sleep(SETTLE_S), self._explained.wait()]
        settled = [asyncio.ensure_future(each) for each in patience]
        await asyncio.wait([everybody, *settled], return_when=asyncio.FIRST_COMPLETED)
        for each in settled:
            each.cancel()
        by_themselves = list(self._ended)
        await self._end_the_others(by_themselves)
        await everybody
        return self._verdict(by_themselves)

    async def _end_the_others(self, by_themselves: Sequence[tuple[Task, int]]) -> None:
        others = [task for task in self.tasks if task.alive]
        causes = [task for task, code in by_themselves if code not in _EFFECTS]
        if causes and not any(task.lost for task in causes):
            for task in others:
                task.kill(f"was killed because {causes[0].name} had ended")
        else:
            await asyncio.gather(*(task.stop(grace_s=self._grace_s) for task in others))

    async def _until_end(self, task: Task) -> None:
        code = await task.wait()
        self._ended.append((task, code))
        if code != 0 or task.name == self.name or len(self._ended) == len(self.tasks):
            self._broken.set()
        if code not in _EFFECTS:
            self._explained.set()

    def _verdict(self, by_themselves: Sequence[tuple[Task, int]]) -> int:
        """The round's exit code; sets what `lost`, `log_path` and the last words are about."""
        if self._leaves:
            self.lost = self._leaves
            return LOST
        failed = [(task, code) for task, code in by_themselves if code != 0]
        if not failed or any(task.name == self.name for task, _ in by_themselves[: by_themselves.index(failed[0])]):
            return 0  # what follows the first machine's good end changes nothing
        if gone := [task for task, _ in self._ended if task.lost]:
            self._cause, self.lost = gone[0], f"{gone[0].name}: {gone[0].lost}"
            return LOST
        refused = [each for each in failed if each[1] in (exit_codes.BAD_USAGE, exit_codes.UNFIT_NODE)]
        causes = [each for each in failed if each[1] not in _EFFECTS]
        self._cause, code = (refused or causes or failed)[0]
        if not self.killed:
            self._say(f"{self._cause.name} on {self._cause.node} has ended: the machines of {self.name} end together")
        return code
