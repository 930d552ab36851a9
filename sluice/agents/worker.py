"""Takes episodes from a run's gateway and plays them, several at once, until the run is over.

A seat waits for an episode, plays it and says how it ended. Waits: for an episode, as long as the gateway keeps it waiting; for
the runner, which the run's own limits bound; for a gateway that is away, `gone_s`.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from sluice.agents.episode import Episode, Outcome
from sluice.agents.gateway import Gateway, RunOver
from sluice.errors import ConfigError, InvalidRequest, Overloaded, SluiceError, Unavailable

log = structlog.get_logger(__name__)

GONE_S: Final = 600.0
"""How long a gateway may be away: a coordinator that starts again takes minutes."""
LAST_WORD_S: Final = 5.0


class Runner(Protocol):
    """Plays episodes with some library's environments."""

    async def play(self, episode: Episode, *, seat: int) -> Outcome:
        """One episode, from its first turn to its score; `seat` plays no other meanwhile.

        Raises ConfigError for what no further episode can mend, which ends the worker; after any other exception the
        episode begins again.
        """
        ...


@dataclass(kw_only=True, slots=True)
class Tally:
    """What a worker did."""

    finished: int = 0
    failed: int = 0


class Worker:
    """The seats of one process."""

    def __init__(
        self,
        gateway: Gateway,
        runner: Runner,
        *,
        environment: str,
        parallel: int,
        grace_s: float,
        gone_s: float = GONE_S,
    ) -> None:
        """`parallel` episodes at once; after `stop` running ones have `grace_s`."""
        self._gateway, self._runner, self._environment = gateway, runner, environment
        self._parallel, self._grace_s, self._gone_s = parallel, grace_s, gone_s
        self.stop = asyncio.Event()
        self.tally = Tally()
        self._reached_s = 0.0

    async def work(self) -> Tally:
        """Returns when the run is over or `stop` is set. Raises ConfigError, Unavailable."""
        self._reached_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as tasks:
                seats = [tasks.create_task(self._sit(seat)) for seat in range(self._parallel)]
                ending = tasks.create_task(self._end(seats))
                await asyncio.wait(seats)
                ending.cancel()
        except* SluiceError as errors:
            raise errors.exceptions[0] from None
        return self.tally

    async def _end(self, seats: "list[asyncio.Task[None]]") -> None:
        await self.stop.wait()
        await asyncio.sleep(self._grace_s)
        for seat in seats:
            seat.cancel()

    async def _sit(self, seat: int) -> None:
        while not self.stop.is_set():
            try:
                episode = await self._take()
            except RunOver as over:
                log.info("run_over", seat=seat, reason=str(over))
                return
            if episode is not None:
                await self._play(episode, seat)

    async def _take(self) -> Episode | None:
        """The next episode; None for none yet. Raises RunOver, ConfigError, Unavailable for a gateway that stays away."""
        loop = asyncio.get_running_loop()
        try:
            episode = await self._unless_stopped()
        except Unavailable:
            if loop.time() - self._reached_s > self._gone_s:
                raise
            await self._pause()
            return None
        except Overloaded as error:
            log.warning("no_place", reason=str(error))
            await self._pause()
            episode = None
        self._reached_s = loop.time()
        return episode

    async def _unless_stopped(self) -> Episode | None:
        taking = asyncio.create_task(self._gateway.take(self._environment))
        stopped = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait([taking, stopped], return_when=asyncio.FIRST_COMPLETED)
            return await taking if taking.done() else None
        finally:
            for task in (taking, stopped):
                task.cancel()
            await asyncio.gather(taking, stopped, return_exceptions=True)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._gateway.pause_s):
                await self.stop.wait()

    async def _play(self, episode: Episode, seat: int) -> None:
        try:
            ended = await self._runner.play(episode, seat=seat)
            await self._gateway.finish(episode, ended)
        except asyncio.CancelledError:
            await self._give_up(episode, "the worker was stopped")
            raise
        except ConfigError as error:
            await self._give_up(episode, str(error))
            raise
        except Exception as error:  # noqa: BLE001 - whatever an environment raises costs its episode one try
            await self._give_up(episode, f"{type(error).__name__}: {error}")
            await self._pause()
        else:
            self.tally.finished += 1

    async def _give_up(self, episode: Episode, why: str) -> None:
        """Tells a gateway that is there; another hears nothing, and takes the episode back by itself."""
        self.tally.failed += 1
        log.warning("episode_failed", episode=episode.episode, reason=why[:500])
        with contextlib.suppress(TimeoutError, Unavailable, InvalidRequest):
            async with asyncio.timeout(LAST_WORD_S):
                await self._gateway.finish(episode, why)
