"""A server of environments and a chat, as the coordinator's core sees them, and a stage with both."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from services.coordinator.episodes.player import Player
from services.coordinator.episodes.token_stream import Continuation
from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.conductor import Conductor
from services.coordinator.groups.grading import Grading
from services.coordinator.state.group import PromptLike
from services.coordinator.state.member import EnvironmentInfo, Member, Role
from sluice.environments import Message, Opening, Reply, Score, Tool
from sluice.errors import NotFound
from sluice.telemetry.traces.tracer import OFF, Tracer
from tests.unit.coordinator.fakes import FakePrompt, FakeRollouts, Stage, make_config

OBSERVED = 2
"""Observed tokens between two turns."""


class FakeChat:
    """The prompt is one id a character of the first message; OBSERVED ids 7 follow a turn."""

    rewrites = False
    """Whether the template rewrites the history."""

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        text = messages[0].content
        return np.array([ord(one) for one in text], np.int32), text

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        return Message(role="assistant", content=" ".join(map(str, sampled)))

    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        assert {message.role for message in (history[-1], *new)} == {"user"}
        if self.rewrites:
            return Continuation(token_ids=np.full(9, 9, np.int32), rewritten=True)
        return Continuation(token_ids=np.full(OBSERVED, 7, np.int32), rewritten=False)


@dataclass
class FakeEnvironments:
    """Episodes of `turns` turns, which score their index modulo 2; `fails` may give an error for a call."""

    turns: int = 2
    scores: bool = True
    fails: Callable[[str, str, int], Exception | None] = lambda service_id, call, count: None
    """(service, call, how many such calls came before) -> raised."""
    chat_of: Callable[[str], str] = lambda episode_id: "go"
    gate: asyncio.Event | None = None
    """Answers to turns wait for it."""
    opened: dict[str, int] = field(default_factory=dict)
    """Open episodes, with the turns they have had."""
    calls: Counter[str] = field(default_factory=Counter)
    last: list[bool] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)

    def _maybe_fail(self, member: Member, call: str) -> None:
        before = self.calls[call]
        self.calls[call] += 1
        if (error := self.fails(member.service_id, call, before)) is not None:
            raise error

    async def open(self, member: Member, *, episode_id: str, prompt: PromptLike, seed: int, **_: Any) -> Opening:
        self._maybe_fail(member, "open")
        self.opened.setdefault(episode_id, 0)
        self.seeds.add(seed)
        return Opening(messages=[Message(role="user", content=self.chat_of(episode_id))])

    async def step(self, member: Member, *, episode_id: str, turn: int, last: bool, **_: Any) -> Reply:
        self._maybe_fail(member, "step")
        if self.gate is not None:
            await self.gate.wait()
        if episode_id not in self.opened:
            raise NotFound(f"{episode_id} is not open")
        self.opened[episode_id] = turn + 1
        self.last.append(last)
        index = int(episode_id.split(".")[1])
        if last or turn + 1 == self.turns:
            return Reply(done=True, score=Score(score=float(index % 2)) if self.scores else None)
        return Reply(messages=[Message(role="user", content="more")])

    async def close(self, member: Member, *, episode_id: str, timeout_s: float) -> None:
        self._maybe_fail(member, "close")
        self.opened.pop(episode_id, None)


@dataclass(frozen=True, kw_only=True)
class EpisodePrompt(FakePrompt):
    environment: str = "game"


class EpisodePrompts:
    """As FakePrompts, with an environment."""

    def next(self, cursor: str) -> tuple[PromptLike, str]:
        return EpisodePrompt(prompt_id=f"p{int(cursor or 0)}"), str(int(cursor or 0) + 1)

    def origin(self, cursor: str, after: str) -> tuple[int, int]:
        return 0, int(after) - 1


class EpisodeStage(Stage):
    """A stage whose rows are played in the environment `game`, hosted by `hosts` servers."""

    def __init__(
        self,
        environments: FakeEnvironments | None = None,
        *,
        rollouts: FakeRollouts | None = None,
        hosts: int = 1,
        places: int = 1000,
        chat: FakeChat | None = None,
        tracer: Tracer = OFF,
        **changes: Any,
    ) -> None:
        self.environments = environments or FakeEnvironments()
        settings = {"data__max_response_length": 64, "data__max_episode_tokens": 128, "data__max_prompt_length": 8}
        config = make_config(environments__game={"environment": "external"}, **(settings | changes))
        super().__init__(config, rollouts=rollouts or FakeRollouts(), tracer=tracer)
        self.player = Player(
            config=config,
            fleet=self.fleet,
            clock=self.clock,
            environments=self.environments,
            chat=chat or FakeChat(),
        )
        self.conductor = Conductor(
            self.run,
            self.records(),
            admitter=Admitter(self.run, self.records(), prompts=EpisodePrompts(), cursor="", admissions=0),
            rollouts=self.rollouts,
            grading=Grading(config=config, fleet=self.fleet, rewards=self.rewards, clock=self.clock),
            player=self.player,
        )
        for place in range(hosts):
            member = self.add_member(Role.ENVIRONMENT, f"env-{place}", capacity=places)
            member.environments = {"game": EnvironmentInfo(version="1", scores=self.environments.scores)}
        self.groups: list[Any] = []
        encode = self.codec.encode
        self.codec.encode = lambda group: (self.groups.append(group), encode(group))[1]  # type: ignore[method-assign]
