"""Where agents wait for episodes, and the keys of those that they have taken.

Each environment `agent` is one member of the fleet while agents are there: its capacity is the number of agents, those that
wait and those that have an episode. So an episode waits for an agent as it does for a place on any server of environments, and
a run without agents is a run without that server.

 who waits   for what      unblocked by
 `take`      an episode    `hand_over`, the end of the run, its limit
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

import structlog

from services.coordinator.agents.asking import EPISODE_OVER, Refused
from services.coordinator.agents.session import AgentSession
from services.coordinator.episodes.wanted_episode import Wanted
from services.coordinator.state.member import EnvironmentInfo, Member, Role, State
from services.coordinator.state.run_context import RunContext
from sluice.config.schema.environments import AGENT
from sluice.errors import Overloaded

log = structlog.get_logger(__name__)

VERSION: Final = "agent"
LOOK_S: Final = 1.0
TELL_EVERY_S: Final = 60.0
"""How often people are told that a run has no agent."""
KEY_BYTES: Final = 32
KEPT_ENDS: Final = 4_096
"""Episodes whose ends are remembered, so that a late request hears why."""


@dataclass(kw_only=True, slots=True)
class Line:
    """The agents of one environment."""

    name: str
    scores: bool
    most: int
    """Agents at once."""
    waiting: "deque[asyncio.Future[AgentSession | None]]" = field(default_factory=deque)
    playing: int = 0
    member: Member | None = None
    used_s: float = 0.0
    """When an agent was here last."""
    told_s: float = float("-inf")
    """When people were told that no agent is here."""


class AgentDesk:
    """Gives episodes to agents that wait."""

    def __init__(self, run: RunContext) -> None:
        self._fleet, self._clock, self._progress, self._events = run.fleet, run.clock, run.progress, run.events
        self._timeout_s = run.config.coordinator.heartbeat_timeout_s
        self.lines = {
            name: Line(name=name, scores=one.scores, most=one.episodes)
            for name, one in run.config.environments.items()
            if one.environment == AGENT
        }
        self.address = ""
        """Where the gateway listens, once it does; a check before training has no gateway."""
        self._sessions: dict[bytes, AgentSession] = {}
        self._ends: OrderedDict[bytes, str] = OrderedDict()

    async def take(self, name: str, *, wait_s: float) -> AgentSession | None:
        """The next episode of an environment; None where none came. Raises Refused."""
        line = self._line_of(name)
        if self._progress.state.final:
            raise Refused(410, "run_over", f"the run has ended: {self._progress.state.value}")
        if len(line.waiting) + line.playing >= line.most:
            raise Refused(
                429, "too_many_agents", f"environments.{line.name}.episodes: {line.most} agents are here already"
            )
        waiter: asyncio.Future[AgentSession | None] = asyncio.get_running_loop().create_future()
        line.waiting.append(waiter)
        self._count(line)
        try:
            await asyncio.wait([waiter], timeout=wait_s)
            return waiter.result() if waiter.done() else None
        except asyncio.CancelledError:
            if waiter.done() and (session := waiter.result()) is not None:
                session.leave()
            raise
        finally:
            if waiter in line.waiting:
                line.waiting.remove(waiter)
                self._count(line)

    def _line_of(self, name: str) -> Line:
        known = ", ".join(self.lines)
        if not name and len(self.lines) == 1:
            return next(iter(self.lines.values()))
        if name not in self.lines:
            message = f"environment: must be one of the environments of agents ({known}), got {name[:80]!r}"
            raise Refused(400, "invalid_value", message, param="environment")
        return self.lines[name]

    def hand_over(self, wanted: Wanted, *, episode_id: str) -> AgentSession:
        """Gives an episode to the agent that waits longest. Raises Overloaded where none does."""
        line = self.lines[wanted.prompt.environment]
        waiting = next((waiter for waiter in line.waiting if not waiter.done()), None)
        if waiting is None:
            raise Overloaded(f"no agent waits for an episode of {line.name!r}")
        session = AgentSession(
            episode_id=episode_id, wanted=wanted, scores=line.scores, key=secrets.token_urlsafe(KEY_BYTES)
        )
        line.playing += 1
        line.waiting.remove(waiting)
        waiting.set_result(session)
        self._sessions[_digest(session.key)] = session
        return session

    def session(self, key: str) -> AgentSession:
        """The episode under a key. Raises Refused."""
        digest = _digest(key)
        found = self._sessions.get(digest)
        if found is not None and hmac.compare_digest(found.key.encode(), key.encode(errors="replace")):
            return found
        if (why := self._ends.get(digest)) is not None:
            raise Refused(410, EPISODE_OVER, f"the episode is over: {why}; take the next one")
        raise Refused(401, "invalid_api_key", "no episode is open under this key: take one with POST /v1/episodes")

    def close(self, session: AgentSession, why: str) -> None:
        """Ends an episode, and with it its key; the agent may take another."""
        session.close(why)
        digest = _digest(session.key)
        del self._sessions[digest]
        self._ends[digest] = why
        if len(self._ends) > KEPT_ENDS:
            self._ends.popitem(last=False)
        line = self.lines[session.wanted.prompt.environment]
        line.playing -= 1
        self._count(line)

    async def stay(self) -> None:
        """Keeps the agents' members in the fleet while agents are there, until cancelled; after the run's end all may go."""
        while True:
            await self._clock.sleep(LOOK_S)
            for line in self.lines.values():
                if self._progress.state.final:
                    self._dismiss(line)
                self._look(line)

    def _look(self, line: Line) -> None:
        member, now_s = line.member, self._clock.now()
        if member is None or member.state is State.LOST:
            if self.address and now_s - line.told_s > TELL_EVERY_S and not self._progress.state.final:
                line.told_s = now_s
                self._events.emit(
                    "agents_awaited", f"{line.name}: no agent is here; they take episodes at {self.address}"
                )
            return
        if line.waiting or line.playing:
            line.used_s = now_s
        member.last_beat_s, member.running = now_s, line.playing
        if now_s - line.used_s > self._timeout_s:
            reason = f"no agent has asked for an episode for {self._timeout_s:g} s (coordinator.heartbeat_timeout_s)"
            self._fleet.lose(member, reason)
            self._events.emit("agents_left", f"{line.name}: {reason}", labels={"service_id": member.service_id})

    def _dismiss(self, line: Line) -> None:
        for waiter in line.waiting:
            if not waiter.done():
                waiter.set_result(None)
        if line.member is not None and line.member.state is State.READY:
            line.member.leaving = True
            self._fleet.set_state(line.member, State.DRAINING)

    def _count(self, line: Line) -> None:
        """Brings the line's member up to date: agents that wait, and those that play."""
        member, line.used_s = line.member, self._clock.now()
        if (member is None or member.state is State.LOST) and line.waiting:
            member = line.member = self._member(line)
            self._fleet.register(member)
            self._events.emit(
                "agents_came", f"{line.name}: agents ask for episodes", labels={"service_id": member.service_id}
            )
        if member is not None:
            member.capacity = len(line.waiting) + line.playing
            self._fleet.changed.notify()

    def _member(self, line: Line) -> Member:
        return Member(
            service_id=f"agents-{line.name}",
            role=Role.ENVIRONMENT,
            address=self.address.partition("//")[2].partition("/")[0],
            incarnation=f"agents-{line.name}",
            capacity=0,
            last_beat_s=self._clock.now(),
            engine="agents",
            environments={line.name: EnvironmentInfo(version=VERSION, scores=line.scores)},
            own=True,
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
