"""One environment of a recipe and the worker processes that hold its episodes. A process that ended is started again when
the next episode opens."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.reward.environments.environment_handle import EnvironmentWorker, Facts, Refused
from services.reward.sandbox.guarded_process import Limits, WorkerDied
from sluice.clock import Clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """An environment as the recipe names it."""

    name: str
    environment: str
    """Built-in name, `file.py:Class` or `module:Class`."""
    settings: Mapping[str, object]
    places: int
    """Episodes at once."""
    workers: int
    limits: Limits


@dataclass(kw_only=True, slots=True, eq=False)
class Hosted:
    """The processes of one environment."""

    wanted: Wanted
    clock: Clock
    facts: Facts = field(default_factory=lambda: Facts(version="", scores=False))
    open: int = 0
    """Episodes that have a place."""
    _workers: list[EnvironmentWorker] = field(default_factory=list)
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        """The name by which rows name the environment."""
        return self.wanted.name

    async def start(self) -> None:
        """Starts the processes. Raises Refused, and WorkerDied."""
        for _ in range(min(self.wanted.workers, self.wanted.places)):
            self._workers.append(await self._started())

    async def least_loaded(self) -> EnvironmentWorker:
        """The process with the fewest episodes, after those that ended are started again. Raises Refused, and WorkerDied."""
        async with self._starting:
            for place, worker in enumerate(self._workers):
                if worker.ended:
                    self._workers[place] = await self._started()
        return min(self._workers, key=lambda worker: worker.episodes)

    async def end(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            await worker.end("the service ends")

    async def _started(self) -> EnvironmentWorker:
        worker = await EnvironmentWorker.start(self.wanted.limits, self.clock)
        try:
            self.facts = await worker.load(self.wanted.environment, self.wanted.settings)
        except (Refused, WorkerDied):
            await worker.end("it could not be loaded")
            raise
        return worker
