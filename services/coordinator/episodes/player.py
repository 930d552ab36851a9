"""Plays episodes to their end: a place on a server of the environment first, then turns; begins again where that fails.

A server that fails, hangs or breaks the contract counts a failed attempt (state/health.py), and the episode begins again, on
another server where there is one. An episode that is not open any more (NOT_FOUND: a lease or a worker ended) begins again
too, and is no fault of its server. Every episode that was asked for is closed, whatever becomes of it.
"""

import itertools
import uuid
from typing import Final, Protocol

import structlog

from services.coordinator.episodes.chat_calls import ChatCalls, ChatLike
from services.coordinator.episodes.environment_places import EnvironmentPlaces
from services.coordinator.episodes.episode import EnvironmentFailed, Episode
from services.coordinator.episodes.policy import BeginAgain, Policy
from services.coordinator.episodes.wanted_episode import Limits, Wanted
from services.coordinator.state.back_pressure import Patience
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import GroupFailed, Sample
from services.coordinator.state.member import Member
from services.coordinator.state.placement import Tried
from services.coordinator.state.ports import EnvironmentClient, TooLarge, WrongAnswer
from sluice.clock import Clock
from sluice.config.schema import Config
from sluice.errors import InvalidRequest, NotFound, Overloaded, SluiceError

log = structlog.get_logger(__name__)

CLOSING_S: Final = 2.0
"""How long the end of a run waits for episodes that are being closed."""


class Agents(Protocol):
    """Agents that bring their own loop."""

    async def play(self, member: Member, wanted: Wanted, policy: Policy, *, episode_id: str) -> Sample:
        """One episode by an agent that waits, on a place of `member` that is taken. Raises as Episode.play does;
        EnvironmentFailed with Overloaded where no agent has taken the episode."""
        ...


class Player:
    """Plays one run's episodes, those of training and those of evaluations."""

    def __init__(
        self,
        *,
        config: Config,
        fleet: Fleet,
        clock: Clock,
        environments: EnvironmentClient,
        chat: ChatLike | ChatCalls,
        agents: Agents | None = None,
    ) -> None:
        """`agents` plays the episodes whose place is at the gateway."""
        self._agents = agents
        self._fleet, self._clock, self._environments = fleet, clock, environments
        self._limits, self._chat = Limits.of(config), chat if isinstance(chat, ChatCalls) else ChatCalls(chat)
        self._places = EnvironmentPlaces(
            fleet=fleet,
            clock=clock,
            environments=environments,
            patience_s=config.coordinator.no_service_timeout_s,
            answer_s=self._limits.answer_s,
        )
        # An environment would answer a former process's episode from memory, so no two processes share an id.
        self._process, self._numbers = uuid.uuid4().hex[:8], itertools.count()

    async def play(self, wanted: Wanted, policy: Policy) -> Sample:
        """One episode as a sample. Raises GroupFailed, and what the policy raises."""
        tried = Tried()
        patience = Patience(self._clock, limit_s=self._limits.push_back_s, setting="coordinator.score_wait_s")
        while True:
            member = await self._places.take(wanted.prompt.environment, tried)
            try:
                sample = await self._play_on(member, wanted, policy)
            except BeginAgain as error:
                policy.failed(reason=error.reason, fault=str(error))
                continue
            except EnvironmentFailed as failure:
                if not isinstance(failure.error, Overloaded):
                    self._blame(member, failure.error, policy, tried)
                    continue
                try:
                    patience.refused(failure.error)
                except Overloaded as over:
                    raise GroupFailed(reason="environment_overloaded", fault=str(over)) from over
                tried.failed_on.add(member.service_id)
            else:
                self._have_played(member, wanted, tried)
                return sample
            await patience.pause()

    async def _play_on(self, member: Member, wanted: Wanted, policy: Policy) -> Sample:
        """One playing on a place that is taken; gives the place back."""
        episode_id = f"{wanted.name}.{next(self._numbers)}.{self._process}"
        if member.own:
            return await self._play_with_agent(member, wanted, policy, episode_id)
        episode = Episode(
            wanted,
            policy,
            episode_id=episode_id,
            member=member,
            environments=self._environments,
            chat=self._chat,
            limits=self._limits,
            clock=self._clock,
        )
        is_open = True
        try:
            opening = await episode.open()
            return await episode.play(opening)
        except EnvironmentFailed as failure:
            is_open = not isinstance(failure.error, Overloaded | TooLarge)  # nothing was opened
            raise
        finally:
            if is_open:
                self._places.close(member, episode.episode_id)
            else:
                self._places.give_back(member)

    async def _play_with_agent(self, member: Member, wanted: Wanted, policy: Policy, episode_id: str) -> Sample:
        assert self._agents is not None, "a gateway has members only where the player knows it"
        try:
            return await self._agents.play(member, wanted, policy, episode_id=episode_id)
        finally:
            self._places.give_back(member)

    def _blame(self, member: Member, error: SluiceError, policy: Policy, tried: Tried) -> None:
        """Counts the failure of a playing. Raises GroupFailed when the group cannot go on."""
        log.warning("episode_failed", service_id=member.service_id, reason=str(error))
        now_s = self._clock.now()
        if isinstance(error, TooLarge):
            raise GroupFailed(reason="too_large", fault=str(error))
        if isinstance(error, InvalidRequest):
            tried.refused_by[member.service_id] = member  # `take` finds another, or fails the group
            return
        tried.failed_on.add(member.service_id)
        if not isinstance(error, NotFound) and not self._fleet.lose_if_unreachable(member, error, now_s=now_s):
            self._fleet.fail(member, str(error), now_s=now_s)
        reason = "environment_wrong_answer" if isinstance(error, WrongAnswer) else "environment"
        policy.failed(reason=reason, fault=str(error))

    def _have_played(self, member: Member, wanted: Wanted, tried: Tried) -> None:
        self._fleet.succeed(member)
        for refuser in tried.refused_by.values():
            reason = f"it refused {wanted.name}, which another server has played"
            self._fleet.fail(refuser, reason, now_s=self._clock.now())

    async def close(self) -> None:
        """Waits, not for long, until the episodes that are being closed are closed."""
        await self._places.drain(grace_s=CLOSING_S)
