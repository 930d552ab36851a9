"""python -m benchmarks.simulated.tools: a server of environments whose tool takes a given time. Episodes have two turns.

Waits: for the coordinator to answer registrations and heartbeats (sluice.rpc.registration bounds it); for SIGTERM.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.simulated.counting_model import starts, word
from sluice.rpc.server import stop_on_signals
from sluice.telemetry.logs import configure_logs
from sluice.testing.fakes.environment import Episode, FakeEnvironment
from sluice.v1 import common_pb2 as common
from sluice.v1 import environment_pb2 as env


class Tools(FakeEnvironment):
    """The row's chat; then an answer of so many words, after which the policy writes as many tokens as in its first turn."""

    def __init__(self, *, name: str, seconds: float, words: int, turn: int, **standing: Any) -> None:
        super().__init__(clock=time.monotonic, scores=False, service_id=name, **standing)
        self.info.name = name
        self._seconds = seconds
        self._says = " ".join([*map(word, range(words - 1)), starts(turn)])

    def check_open(self, request: env.OpenRequest) -> None:
        """Opens whatever is asked for."""

    def begin(self, request: env.OpenRequest) -> Episode:
        episode = super().begin(request)
        del episode.opened.messages[:]
        return episode

    async def Step(self, request: env.StepRequest, context: Any) -> env.StepResponse:
        await asyncio.sleep(self._seconds)
        return await super().Step(request, context)

    def answer(self, request: env.StepRequest, episode: Episode) -> env.StepResponse:
        if request.turn or request.last:
            return env.StepResponse(done=True)
        return env.StepResponse(messages=[common.ChatMessage(role="user", content=self._says)])


async def serve(args: argparse.Namespace) -> None:
    """Until a signal comes."""
    tools = [
        Tools(
            name=name,
            seconds=float(seconds),
            words=args.words,
            turn=args.turn,
            places=args.places,
            capacity=args.places,
            model=args.model,
        )
        for name, _, seconds in (tool.partition("=") for tool in args.tools)
    ]
    stop = asyncio.Event()
    stop_on_signals(stop)
    for one in tools:
        await one.join(args.coordinator)
    await stop.wait()
    for one in tools:
        await one.stop()


def main() -> None:
    """Serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True, help="HOST:PORT")
    parser.add_argument("--model", type=Path, required=True, help="folder whose identity is stated")
    parser.add_argument("--tools", nargs="+", required=True, help="NAME=SECONDS of each")
    parser.add_argument("--words", type=int, required=True, help="of its answer")
    parser.add_argument("--turn", type=int, required=True, help="tokens of the policy's next turn")
    parser.add_argument("--places", type=int, required=True, help="episodes at once")
    configure_logs(service="tools", level="warning")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
