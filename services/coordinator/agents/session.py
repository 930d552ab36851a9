"""One episode in the hands of an agent: a letter box between the agent's requests and the coordinator that plays the episode.

 who waits     for what                        unblocked by
 an agent      the turn that it asked for      the turn, the episode's end, ANSWER_S
 `next`        the agent's next request        the request, `finish`, its limit
An agent asks for one turn at a time. A request whose connection ends before it is answered stays under way: the same request,
sent again, gets its answer.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from services.coordinator.agents.asking import EPISODE_OVER, UNDER_WAY, Ask, Ended, Refused, Said
from services.coordinator.episodes.wanted_episode import Wanted
from sluice.errors import NotFound, Overloaded

ANSWER_S: Final = 540.0
"""How long a request waits for its turn. Below the 600 s after which the `openai` client gives a request up and repeats it."""


@dataclass(kw_only=True, slots=True, eq=False)
class Pending:
    """A request under way, or answered last."""

    ask: Ask
    answer: "asyncio.Future[Said]"
    listeners: int = 0
    heard: bool = False
    """Whether somebody was there for the answer."""

    def refuse(self, refused: Refused) -> None:
        """Answers with a refusal, unless the request is answered."""
        if not self.answer.done():
            self.answer.set_exception(refused)
            self.answer.exception()  # nobody need hear it


@dataclass(kw_only=True, slots=True, eq=False)
class AgentSession:
    """One episode, from the moment at which an agent was given it."""

    episode_id: str
    wanted: Wanted
    scores: bool
    """Whether the agent says the score."""
    key: str = field(repr=False)
    has_turn: bool = False
    """Whether a turn was sampled."""
    _latest: Pending | None = None
    _came: "asyncio.Queue[Pending | Ended]" = field(default_factory=asyncio.Queue)
    _ended: bool = False
    _closed: str = ""
    _never_heard: bool = False

    async def ask(self, ask: Ask) -> Said:
        """The turn that an agent asks for. Raises Refused."""
        self._refuse_if_over()
        pending = self._pending_of(ask)
        pending.listeners += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                said = await asyncio.shield(pending.answer)
        except TimeoutError:
            raise Refused(
                503, "timeout", f"no turn was sampled in {ANSWER_S:g} s; send the same request again"
            ) from None
        finally:
            pending.listeners -= 1
        pending.heard = True
        return said

    def _pending_of(self, ask: Ask) -> Pending:
        latest = self._latest
        if latest is not None and not latest.heard and not latest.listeners and self._may_repeat(latest, ask):
            return latest
        if latest is not None and not latest.answer.done():
            raise Refused(409, UNDER_WAY, "a turn of this episode is being sampled: an agent asks for one at a time")
        self._latest = Pending(ask=ask, answer=asyncio.get_running_loop().create_future())
        self._came.put_nowait(self._latest)
        return self._latest

    @staticmethod
    def _may_repeat(latest: Pending, ask: Ask) -> bool:
        refused = latest.answer.done() and latest.answer.exception() is not None
        return latest.ask.fingerprint == ask.fingerprint and not refused

    def end(self, ended: Ended) -> None:
        """The agent's last word. Raises Refused."""
        self._refuse_if_over()
        if not self.has_turn and not ended.error:
            raise Refused(
                409, "no_turn", "no turn was sampled yet, so there is nothing to score; give an error instead"
            )
        if self._latest is not None and not self._latest.answer.done():
            raise Refused(409, UNDER_WAY, "a turn of this episode is being sampled; finish after its answer")
        self._ended = True
        self._came.put_nowait(ended)

    def leave(self) -> None:
        """The agent has gone before it could have heard of the episode."""
        self._never_heard = True
        self._came.put_nowait(Ended(error="its connection ended"))

    async def next(self, limit_s: float, *, waited_s: float = 0.0) -> Pending | Ended:
        """The agent's next request, or its last word. Raises Overloaded for an agent that never heard of the episode,
        NotFound for an agent that sends nothing within `limit_s`, of which `waited_s` have passed: requests that were
        refused count as silence.
        """
        try:
            async with asyncio.timeout(limit_s - waited_s):
                came = await self._came.get()
        except TimeoutError:
            raise NotFound(
                f"the agent of {self.episode_id} asked for no turn that could be sampled in {limit_s:g} s "
                "(rollout.turn_timeout_s)"
            ) from None
        if self._never_heard:
            raise Overloaded(f"the agent that waited for {self.episode_id} has gone")
        return came

    def close(self, why: str) -> None:
        """Ends the episode: a request under way is refused, and so are later ones."""
        self._closed = why
        if self._latest is not None:
            self._latest.refuse(self._over())

    def _refuse_if_over(self) -> None:
        if self._closed or self._ended:
            raise self._over()

    def _over(self) -> Refused:
        return Refused(
            410, EPISODE_OVER, f"the episode is over: {self._closed or 'it has been finished'}; take the next one"
        )
