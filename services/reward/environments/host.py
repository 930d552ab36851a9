"""Episodes of hosted environments: opened once, each turn answered once, closed or ended by their lease.

 who waits            for what                  unblocked by
 a caller of `open`   its episode's first call  the answer, the call's limit (its process is ended then)
 a caller of `step`   the turn's answer         the same; a repeated call waits for the first one's answer
 `close`              the object's close        the same, with CLOSE_LIMIT_S
A call goes on when its caller is gone, so that the repeated call finds the answer. Of each episode the opening and the last
turn's answer are kept (answers.py bounds them), no more.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from services.reward.environments.answers import WrongAnswer, frame_of, opening_in, reply_in
from services.reward.environments.environment_handle import EnvironmentWorker, Refused
from services.reward.environments.hosted import Hosted, Wanted
from services.reward.sandbox.frames import Frame
from services.reward.sandbox.guarded_process import WorkerDied
from sluice.clock import Clock, SystemClock
from sluice.environments import Message, Opening, Reply, Row
from sluice.errors import ConfigError, Expired, InvalidRequest, NotFound, NotReady, Overloaded, SluiceError

log = structlog.get_logger(__name__)

T = TypeVar("T")

CLOSE_LIMIT_S: Final = 10.0
_SWEEP_S = 0.5


class EnvironmentFault(SluiceError):
    """The environment raised, or answered what it may not answer."""

    usual_fix = "mend the environment that the message names"


@dataclass(kw_only=True, slots=True, eq=False)
class _Episode:
    id: str
    hosted: Hosted
    lease_s: float
    until_s: float
    max_turns: int
    worker: EnvironmentWorker | None = None
    opening: "asyncio.Task[Opening] | None" = None
    turn: int = -1
    """The last turn that was given."""
    answer: "asyncio.Task[Reply] | None" = None
    """The answer to it."""
    done: bool = False

    @property
    def works(self) -> bool:
        """Whether a call of it is under way."""
        return any(task is not None and not task.done() for task in (self.opening, self.answer))


class EnvironmentHost:
    """All episodes of one service. `EnvironmentHost.start` makes a host."""

    def __init__(self, hosted: Sequence[Hosted], clock: Clock) -> None:
        self._hosted: Mapping[str, Hosted] = {one.name: one for one in hosted}
        self._clock = clock
        self._episodes: dict[str, _Episode] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def start(cls, wanted: Sequence[Wanted], *, clock: Clock | None = None) -> AsyncIterator["EnvironmentHost"]:
        """A host of loaded environments, whose processes live as long as the context. Raises ConfigError, a line each."""
        clock = clock or SystemClock()
        host = cls([Hosted(wanted=one, clock=clock) for one in wanted], clock)
        sweeping = asyncio.create_task(host._sweep_on(), name="environment-leases")
        try:
            await host._load()
            yield host
        finally:
            sweeping.cancel()
            for hosted in host._hosted.values():
                await hosted.end()

    @property
    def hosted(self) -> Sequence[Hosted]:
        """The environments."""
        return list(self._hosted.values())

    @property
    def capacity(self) -> int:
        """Episodes at once, of all environments."""
        return sum(one.wanted.places for one in self.hosted)

    @property
    def running(self) -> int:
        """Episodes that have a place."""
        return sum(one.open for one in self.hosted)

    async def open(self, episode_id: str, environment: str, row: Row, *, lease_s: float, limit_s: float) -> Opening:
        """Begins an episode; of a running one the first answer.

        Raises InvalidRequest for an unknown environment, Overloaded, Expired, EnvironmentFault.
        """
        self.sweep()
        episode = self._episodes.get(episode_id)
        if episode is None:
            episode = self._begin(episode_id, environment, row, lease_s=lease_s, limit_s=limit_s)
        elif episode.hosted.name != environment:
            raise InvalidRequest(f"{episode_id}: is an episode of {episode.hosted.name}, not of {environment[:80]}")
        assert episode.opening is not None
        return await self._answer(episode, episode.opening)

    async def step(self, episode_id: str, turn: int, message: Message, *, last: bool, limit_s: float) -> Reply:
        """Gives the environment a turn of the policy; of a repeated turn the first answer.

        Raises NotFound, InvalidRequest for a turn that is not the next, NotReady, Expired, EnvironmentFault.
        """
        self.sweep()
        episode = self._episodes.get(episode_id)
        if episode is None:
            raise NotFound(f"{episode_id}: is not open here; its lease or its process has ended, or it was closed")
        if turn == episode.turn and episode.answer is not None:
            return await self._answer(episode, episode.answer)
        if turn != episode.turn + 1 or turn >= episode.max_turns:
            again = f", or {episode.turn} again" if episode.turn >= 0 else ""
            raise InvalidRequest(
                f"{episode_id}: turn must be {episode.turn + 1}{again}, below max_turns ({episode.max_turns}), got {turn}"
            )
        if episode.done or episode.works:
            raise NotReady(f"{episode_id}: {'is done' if episode.done else 'its former call is not answered yet'}")
        last = last or turn + 1 == episode.max_turns
        episode.turn = turn
        episode.answer = _task(self._played(episode, message, last=last, limit_s=limit_s))
        return await self._answer(episode, episode.answer)

    async def close(self, episode_id: str) -> None:
        """Ends an episode, if it is open; returns when its object is closed and its place free."""
        if episode := self._episodes.get(episode_id):
            await asyncio.shield(self._end(episode))

    def sweep(self) -> None:
        """Ends episodes whose lease or whose process has ended."""
        now_s = self._clock.now()
        for episode in list(self._episodes.values()):
            if episode.works:
                continue
            if episode.until_s <= now_s:
                log.warning("episode_lease_ended", episode=episode.id, environment=episode.hosted.name)
                self._end(episode)
            elif episode.worker is not None and episode.worker.ended:
                self._end(episode)

    async def _sweep_on(self) -> None:
        while True:
            await self._clock.sleep(_SWEEP_S)
            self.sweep()

    async def _load(self) -> None:
        problems: list[str] = []
        for hosted in self._hosted.values():
            try:
                await hosted.start()
            except (Refused, WorkerDied) as refusal:
                problems.append(f"environments.{hosted.name}: {refusal}")
        if problems:
            raise ConfigError("\n".join(problems))

    def _begin(self, episode_id: str, environment: str, row: Row, *, lease_s: float, limit_s: float) -> _Episode:
        hosted = self._hosted.get(environment)
        if hosted is None:
            raise InvalidRequest(
                f"environment: must be one of {', '.join(self._hosted) or 'none'}, got {environment[:80]!r}"
            )
        if hosted.open >= hosted.wanted.places:
            raise Overloaded(f"environment {hosted.name}: all of its {hosted.wanted.places} places are taken")
        hosted.open += 1
        until_s = self._clock.now() + lease_s
        episode = _Episode(id=episode_id, hosted=hosted, lease_s=lease_s, until_s=until_s, max_turns=row.max_turns)
        self._episodes[episode_id] = episode
        episode.opening = _task(self._opened(episode, row, limit_s=limit_s))
        return episode

    async def _answer(self, episode: _Episode, task: "asyncio.Task[T]") -> T:
        """The answer of a call that goes on when this caller is gone; the lease begins anew with it."""
        episode.until_s = self._clock.now() + episode.lease_s
        answer = await asyncio.shield(task)
        episode.until_s = self._clock.now() + episode.lease_s
        return answer

    async def _opened(self, episode: _Episode, row: Row, *, limit_s: float) -> Opening:
        hosted = episode.hosted
        try:
            episode.worker = await hosted.least_loaded()
        except (Refused, WorkerDied) as refusal:
            self._end(episode)
            raise EnvironmentFault(f"environment {hosted.name}: {refusal}") from refusal
        episode.worker.episodes += 1
        question = {"do": "open", "row": frame_of(row)}
        return await self._asked(episode, question, limit_s, lambda frame: opening_in(frame["opening"]))

    async def _played(self, episode: _Episode, message: Message, *, last: bool, limit_s: float) -> Reply:
        question = {"do": "step", "message": frame_of(message), "last": last}
        scores = episode.hosted.facts.scores

        def read(frame: Frame) -> Reply:
            return reply_in(frame["reply"], to=message, scores=scores)

        reply = await self._asked(episode, question, limit_s, read)
        episode.done = reply.done
        return reply

    async def _asked(
        self, episode: _Episode, question: Mapping[str, Any], limit_s: float, read: Callable[[Frame], T]
    ) -> T:
        """The answer, read. Every failure ends the episode."""
        name, worker, do = episode.hosted.name, episode.worker, question["do"]
        assert worker is not None
        try:
            frame = await worker.ask({**question, "episode": episode.id}, limit_s=limit_s)
            if "error" in frame:
                raise EnvironmentFault(f"environment {name}: {str(frame['error'])[:600]}")
            return read(frame)
        except TimeoutError:
            self._end(episode)
            took = f"took longer than {limit_s:.3g} s (its bound is rollout.turn_timeout_s)"
            raise Expired(f"environment {name}: {do} {took}; its process was ended") from None
        except WorkerDied as death:
            self._end(episode)
            if do == "step":
                raise NotFound(f"{episode.id}: environment {name}: {death}") from death
            raise EnvironmentFault(f"environment {name}: {do}: {death}") from death
        except (WrongAnswer, KeyError) as error:
            self._end(episode)
            raise EnvironmentFault(f"environment {name}: {do}: {error}") from error
        except EnvironmentFault:
            self._end(episode)
            raise

    def _end(self, episode: _Episode) -> "asyncio.Task[None]":
        """Takes the episode off the list at once; its place is free when its object is closed."""
        self._episodes.pop(episode.id, None)
        ending = _task(self._ended(episode))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    async def _ended(self, episode: _Episode) -> None:
        current = (episode.opening, episode.answer)
        await asyncio.wait([task for task in current if task is not None])
        worker = episode.worker
        try:
            if worker is not None and not worker.ended:
                frame = await worker.ask({"do": "close", "episode": episode.id}, limit_s=CLOSE_LIMIT_S)
                if "error" in frame:
                    log.warning("environment_close_failed", environment=episode.hosted.name, reason=frame["error"])
        except (TimeoutError, WorkerDied) as error:
            log.warning("environment_close_failed", environment=episode.hosted.name, reason=repr(error))
        finally:
            episode.hosted.open -= 1
            if worker is not None:
                worker.episodes -= 1


def _task(work: Any) -> "asyncio.Task[Any]":
    """A task whose error is nobody's loss where the caller is gone."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
