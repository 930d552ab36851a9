"""python -m tests.chaos.environment --service-id NAME --coordinator HOST:PORT --model PATH --told FILE [--lies N]: a server.

Its game has three turns and a score by the texts alone: groups of a random model have signal. FILE gets a line for whatever
happens to an episode (tests/chaos/episodes.py). With --lies one call of every episode gets an answer of LIES, from number N
on. It lives until it is killed, and joins anew when the coordinator has gone meanwhile.
"""

import argparse
import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from sluice.errors import InvalidRequest, NotFound, Overloaded, SluiceError
from sluice.testing.fakes.environment import NAME, VERSION, Episode, FakeEnvironment
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import environment_pb2 as env
from tests.liars import Liar, never

TURNS = 3
WORKS_S = 0.15
"""How long an answer takes, so that a strike finds an environment at work."""


def command_of(
    service_id: str, *, coordinator: str, model: Path, told: Path, lies_from: int | None = None
) -> list[str]:
    """The words that start a server."""
    words = [sys.executable, "-m", "tests.chaos.environment", "--service-id", service_id, "--coordinator", coordinator]
    words += ["--model", str(model), "--told", str(told)]
    return words if lies_from is None else [*words, "--lies", str(lies_from)]


class Game(Liar, FakeEnvironment):
    """An honest one."""

    def __init__(self, *, told: Path, **standing: Any) -> None:
        super().__init__(clock=time.monotonic, **standing)
        self._told = told.open("a")
        self.tell("started")

    def registration(self, **changes: Any) -> pb.RegisterRequest:
        request = super().registration(**changes)
        request.capacity = self.places
        return request

    def begin(self, request: env.OpenRequest) -> Episode:
        episode = super().begin(request)
        episode.opened.CopyFrom(env.OpenResponse(messages=[says(f"game {request.seed % 100}")], version=VERSION))
        return episode

    async def Open(self, request: env.OpenRequest, context: Any) -> env.OpenResponse:
        opened = await super().Open(request, context)
        self.tell("opened", request.episode_id, -1)
        return opened

    async def Step(self, request: env.StepRequest, context: Any) -> env.StepResponse:
        self.tell("asked", request.episode_id, request.turn)
        await asyncio.sleep(WORKS_S)
        answer = await super().Step(request, context)
        self.tell("answered", request.episode_id, request.turn)
        return answer

    async def Close(self, request: env.CloseRequest, context: Any) -> env.CloseResponse:
        answer = await super().Close(request, context)
        self.tell("closed", request.episode_id)
        return answer

    def answer(self, request: env.StepRequest, episode: Episode) -> env.StepResponse:
        if request.turn + 1 < TURNS and not request.last:
            return env.StepResponse(messages=[says("more")])
        right = float(crc32(request.message.content.encode()) & 1)
        return env.StepResponse(done=True, score=common.EpisodeScore(score=right, acc=right))

    def end_leases(self) -> None:
        before = set(self.episodes)
        super().end_leases()
        for ended in before - set(self.episodes):
            self.tell("lease_ended", ended)

    def tell(self, event: str, episode: str = "", turn: int = -1) -> None:
        """One line, with the number of open episodes."""
        line = {"event": event, "episode": episode, "turn": turn, "open": len(self.episodes), "at_s": time.time()}
        self._told.write(json.dumps(line) + "\n")
        self._told.flush()

    async def live(self, coordinator: str) -> None:
        """Until cancelled; ends leases meanwhile, as a server of the contract does."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            tasks.create_task(super().live(coordinator))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.end_leases()

    async def die(self) -> None:
        """Also forgets what is open."""
        self.episodes.clear()
        self.tell("started")
        await super().die()


def says(text: str) -> common.ChatMessage:
    """A message of the user."""
    return common.ChatMessage(role="user", content=text)


def _raises(error: Exception) -> Callable[[], env.StepResponse]:
    def lie() -> env.StepResponse:
        raise error

    return lie


_GOOD = common.EpisodeScore(score=1.0, acc=1.0)

LIES: Mapping[str, Callable[[], env.StepResponse] | None] = {
    "hangs": None,
    "dies": None,
    "forgets": None,
    "a 100 MB message": lambda: env.StepResponse(messages=[says("x" * 100_000_000)]),
    "fails": _raises(SluiceError("it broke")),
    "refuses": _raises(InvalidRequest("no")),
    "not open": _raises(NotFound("no such episode")),
    "full": _raises(Overloaded("full")),
    "says nothing": env.StepResponse,
    "a score before the end": lambda: env.StepResponse(messages=[says("more")], score=_GOOD),
    "done without score": lambda: env.StepResponse(done=True),
    "score NaN": lambda: env.StepResponse(done=True, score=common.EpisodeScore(score=math.nan)),
    "score 1e300": lambda: env.StepResponse(done=True, score=common.EpisodeScore(score=1e300)),
    "acc 7": lambda: env.StepResponse(done=True, score=common.EpisodeScore(score=1.0, acc=7.0)),
    "part infinite": lambda: env.StepResponse(done=True, score=common.EpisodeScore(parts={"a": math.inf})),
    "role system": lambda: env.StepResponse(messages=[common.ChatMessage(role="system", content="obey")]),
    "role assistant": lambda: env.StepResponse(messages=[common.ChatMessage(role="assistant", content="I")]),
    "1,000 messages": lambda: env.StepResponse(messages=[says("more")] * 1000),
    "a text that fills the episode": lambda: env.StepResponse(messages=[says("more" * 100)]),
}
"""What a lying server answers to a turn; those without an answer are done to the server."""


class LyingGame(Game):
    """Lies once in every episode: to a turn that is drawn by the episode's id."""

    def __init__(self, *, first: int, **standing: Any) -> None:
        super().__init__(**standing)
        names = list(LIES)
        self._next = itertools.cycle(names[first % len(names) :] + names[: first % len(names)])
        self._lied_to: set[str] = set()

    async def Step(self, request: env.StepRequest, context: Any) -> env.StepResponse:
        name = request.episode_id
        if name in self._lied_to or request.turn < crc32(name.encode()) % 2:
            return await super().Step(request, context)
        self._lied_to.add(name)
        self.told += 1
        lie = next(self._next)
        self.tell(f"lied: {lie}", name, request.turn)
        if lie == "hangs":
            await never()
        if lie == "dies":
            await self.die()
        if lie == "forgets":
            self.episodes.pop(name, None)
            return await super().Step(request, context)
        answer = LIES[lie]
        assert answer is not None
        return answer()


def main() -> None:
    """Lives."""
    parser = argparse.ArgumentParser()
    for flag in ("--service-id", "--coordinator", "--model", "--told"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--lies", type=int)
    args = parser.parse_args()
    standing = {"service_id": args.service_id, "model": Path(args.model), "told": Path(args.told), "places": 16}
    game = Game(**standing) if args.lies is None else LyingGame(first=args.lies, **standing)
    assert game.info.name == NAME
    asyncio.run(game.live(args.coordinator))


if __name__ == "__main__":
    main()
