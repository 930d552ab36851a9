"""A server of environments without processes of its own, which keeps their contract (sluice/testing/conformance): a game."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from sluice.errors import InvalidRequest, NotFound, Overloaded
from sluice.testing.fakes.service import FakeService
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import environment_pb2, environment_pb2_grpc

NAME, VERSION = "guess", "1"
HIGHEST = 100


@dataclass(kw_only=True, slots=True)
class Episode:
    """One game that runs."""

    opened: environment_pb2.OpenResponse
    secret: int
    lease_s: float
    until: float
    """When the lease ends, by the fake's clock."""
    answers: list[environment_pb2.StepResponse] = field(default_factory=list)


class FakeEnvironment(FakeService, environment_pb2_grpc.EnvironmentServiceServicer):
    """Guess a number from 1 to 100, which the seed decides: a guess is answered with "higher" or "lower"; the score is 1 for
    the number."""

    service_name = "sluice.v1.EnvironmentService"
    role = pb.SERVICE_ROLE_ENVIRONMENT

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        service_id: str = "environment-0",
        places: int = 64,
        scores: bool = True,
        **standing: Any,
    ) -> None:
        """`clock` says seconds; leases end by it."""
        super().__init__(service_id=service_id, **standing)
        self.clock, self.places = clock, places
        self.info = environment_pb2.EnvironmentInfo(name=NAME, version=VERSION, scores=scores)
        self.episodes: dict[str, Episode] = {}
        """Open episodes, and those whose lease has ended unnoticed."""

    def registration(self, **changes: Any) -> pb.RegisterRequest:
        """FakeService.registration, with the environment that this server hosts."""
        request = super().registration(**changes)
        request.environments.append(self.info)
        return request

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds this servicer."""
        environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(self, server)

    async def ListEnvironments(self, request: Any, context: Any) -> environment_pb2.ListEnvironmentsResponse:
        return environment_pb2.ListEnvironmentsResponse(environments=[self.info])

    async def Open(self, request: environment_pb2.OpenRequest, context: Any) -> environment_pb2.OpenResponse:
        self.check_open(request)
        self.end_leases()
        if request.episode_id not in self.episodes:
            if len(self.episodes) >= self.places:
                raise Overloaded(f"episodes: all {self.places} places are taken")
            self.episodes[request.episode_id] = self.begin(request)
        return self.called(request.episode_id).opened

    async def Step(self, request: environment_pb2.StepRequest, context: Any) -> environment_pb2.StepResponse:
        self.end_leases()
        episode = self.called(request.episode_id)
        self.check_step(request, episode)
        if request.turn == len(episode.answers):
            episode.answers.append(self.answer(request, episode))
        return episode.answers[request.turn]

    async def Close(self, request: environment_pb2.CloseRequest, context: Any) -> environment_pb2.CloseResponse:
        self.episodes.pop(request.episode_id, None)
        return environment_pb2.CloseResponse()

    def begin(self, request: environment_pb2.OpenRequest) -> Episode:
        """A game for a request."""
        says = common.ChatMessage(role="user", content=f"Guess my number, 1 to {HIGHEST}.")
        opened = environment_pb2.OpenResponse(messages=[says], version=VERSION)
        secret = request.seed * 37 % HIGHEST + 1
        return Episode(opened=opened, secret=secret, lease_s=request.lease_s, until=self.clock() + request.lease_s)

    def called(self, episode_id: str) -> Episode:
        """The open episode, its lease renewed. Raises NotFound."""
        if (episode := self.episodes.get(episode_id)) is None:
            raise NotFound(f"episode_id: {episode_id[:80]!r} is not open here")
        episode.until = self.clock() + episode.lease_s
        return episode

    def end_leases(self) -> None:
        """Ends the episodes that nobody calls."""
        now = self.clock()
        self.episodes = {name: one for name, one in self.episodes.items() if one.until > now}

    def answer(self, request: environment_pb2.StepRequest, episode: Episode) -> environment_pb2.StepResponse:
        """What the game says to a guess."""
        text = request.message.content.strip()
        guess = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
        right = guess == episode.secret
        done = right or request.last
        says = (
            "right" if right else "a number, please" if not guess else "higher" if guess < episode.secret else "lower"
        )
        score = common.EpisodeScore(score=float(right), acc=float(right), extracted=text[:10])
        return environment_pb2.StepResponse(
            messages=[common.ChatMessage(role="user", content=says)],
            done=done,
            score=score if done and self.info.scores else None,
        )

    def check_open(self, request: environment_pb2.OpenRequest) -> None:
        """Raises InvalidRequest for what cannot be opened."""
        try:
            holds = isinstance(json.loads(request.arguments_json or "{}"), dict)
        except ValueError:
            holds = False
        if request.environment != NAME:
            raise InvalidRequest(f"environment: must be {NAME}, got {request.environment[:80]!r}")
        if not (holds and request.episode_id and request.max_turns > 0 and 0 < request.lease_s < math.inf):
            raise InvalidRequest("arguments_json must be an object; episode_id, lease_s and max_turns must be set")

    def check_step(self, request: environment_pb2.StepRequest, episode: Episode) -> None:
        """Raises InvalidRequest for what is no turn of the episode."""
        known = 0 <= request.turn <= len(episode.answers)
        finished = request.finish_reason in (common.FINISH_REASON_STOP, common.FINISH_REASON_LENGTH)
        if not (known and finished and request.message.role == "assistant"):
            raise InvalidRequest(
                f"turn, finish_reason and role must be set, and turn be {len(episode.answers)} or less"
            )
