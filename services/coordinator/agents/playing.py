"""Plays an episode that an agent drives: the agent's requests are answered with turns of the policy, until its last word.

The agent's loop takes the place of `Open` and `Step`; turns, tokens, budgets and what a failure costs are those of every
episode (episodes/episode.py). Waits: for the agent, at most `Limits.answer_s` from a turn to the request that leads to the next
one; for turns (Policy.turn says who unblocks them).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from services.coordinator.agents.asking import CONTEXT_LENGTH, Ask, Ended, Refused, Said
from services.coordinator.agents.conversation import Conversation, Placed
from services.coordinator.agents.desk import AgentDesk
from services.coordinator.agents.session import AgentSession, Pending
from services.coordinator.episodes.chat_calls import ChatCalls
from services.coordinator.episodes.continuation import Continuation
from services.coordinator.episodes.episode import EnvironmentFailed
from services.coordinator.episodes.policy import Policy
from services.coordinator.episodes.token_stream import TokenStream
from services.coordinator.episodes.wanted_episode import Limits, OpenedPrompt, Wanted
from services.coordinator.state.group import Sample
from services.coordinator.state.member import Member
from sluice.errors import DataError, NotFound, Overloaded, SluiceError


class AgentPlayer:
    """Implements Agents of episodes/player.py."""

    def __init__(
        self, desk: AgentDesk, *, limits: Limits, chat: ChatCalls, text_of: Callable[[np.ndarray], str]
    ) -> None:
        """`text_of` writes token ids as text, special tokens too."""
        self._desk, self._limits, self._chat, self._text_of = desk, limits, chat, text_of

    async def play(self, member: Member, wanted: Wanted, policy: Policy, *, episode_id: str) -> Sample:
        """Agents.play."""
        try:
            session = self._desk.hand_over(wanted, episode_id=episode_id)
        except Overloaded as error:
            raise EnvironmentFailed(error) from error
        why = "it was broken off"
        try:
            playing = _Playing(
                session=session,
                policy=policy,
                limits=self._limits,
                conversation=Conversation(self._chat),
                text_of=self._text_of,
            )
            sample = await playing.play()
            why = "it has been finished"
        except SluiceError as error:
            why = str(error)
            raise EnvironmentFailed(error) from error
        except Exception as error:
            why = str(error)
            raise
        finally:
            self._desk.close(session, why)
        return sample


@dataclass(kw_only=True, slots=True)
class _Playing:
    """One episode of one agent."""

    session: AgentSession
    policy: Policy
    limits: Limits
    conversation: Conversation
    text_of: Callable[[np.ndarray], str]
    _stream: TokenStream | None = None
    _silent_s: float = 0.0
    """How long the agent has been asking for nothing since the last turn."""
    _since_s: float = field(default_factory=time.monotonic)
    """When the last turn was sampled, or the episode given to the agent."""
    _out_of_room: bool = False
    """Whether the budgets cut the last turn, or left none."""

    async def play(self) -> Sample:
        """The episode as one sample. Raises SluiceError for an agent that fails, and what the policy raises."""
        came = await self._next()
        self.policy.begin()
        try:
            while isinstance(came, Pending):
                await self._answer(came)
                came = await self._next()
            return self._sample(came)
        except BaseException:  # also a cancellation: what was sampled is lost
            self.policy.lost(0 if self._stream is None else self._stream.sampled_tokens)
            raise

    async def _next(self) -> Pending | Ended:
        asked = time.monotonic()
        came = await self.session.next(self.limits.answer_s, waited_s=asked - self._since_s)
        self._silent_s += time.monotonic() - asked
        return came

    def _sample(self, ended: Ended) -> Sample:
        if ended.error:
            raise NotFound(f"the agent of {self.session.episode_id} gave up: {ended.error}")
        assert self._stream is not None, "the session refuses an end without a turn"
        self._stream.answered((), self._silent_s)
        finish = "length" if self._out_of_room else "stop"
        return self._stream.to_sample(self.session.wanted.index, finish, ended.score)

    async def _answer(self, pending: Pending) -> None:
        """Answers a request with a turn, or refuses it."""
        try:
            said = await self._turn(pending.ask)
        except Refused as refused:
            pending.refuse(refused)
        else:
            self.session.has_turn = True
            pending.answer.set_result(said)

    async def _turn(self, ask: Ask) -> Said:
        """A turn of the policy after a request. Raises Refused."""
        started = time.monotonic()
        try:
            placed = await self.conversation.place(ask)
        except DataError as error:
            raise Refused(400, "invalid_value", str(error), param="messages") from error
        most = self._room(placed, ask)
        stream = self._read(placed)
        turn = stream.turns
        sample = await self.policy.turn(placed.context, turn=turn, max_tokens=min(most, ask.max_tokens or most))
        message = await self.conversation.said(placed, sample.token_ids)
        names = [call.name for call in message.tool_calls]
        stream.add(sample, tools=names, seconds=time.monotonic() - started)
        self._silent_s, self._since_s = 0.0, time.monotonic()
        self._out_of_room = sample.finish_reason == "length" and len(sample.token_ids) >= most
        return Said(turn=turn, context=placed.context, sample=sample, message=message)

    def _room(self, placed: Placed, ask: Ask) -> int:
        """Tokens that the turn may have. Raises Refused where the budgets leave none."""
        context, limits = len(placed.context), self.limits
        if self._stream is None:
            if context > limits.prompt_tokens:
                raise _too_long(f"the chat has {context} tokens, data.max_prompt_length is {limits.prompt_tokens}")
            return limits.room(context=context, sampled=0)
        if self._stream.turns >= limits.turns:
            self._out_of_room = True
            raise _too_long(f"the episode has had its {limits.turns} turns (rollout.max_turns); finish it")
        most = limits.room(context=context, sampled=self._stream.sampled_tokens)
        if most <= 0:
            self._out_of_room = True
            sampled = f"{self._stream.sampled_tokens} of {limits.sampled_tokens} tokens (data.max_response_length)"
            whole = f"{context} of {limits.episode_tokens} (data.max_episode_tokens)"
            raise _too_long(
                f"no room is left for a turn: the policy wrote {sampled}, the context has {whole}; finish it"
            )
        return most

    def _read(self, placed: Placed) -> TokenStream:
        """Takes what the policy reads into the stream, which begins with the group's prompt."""
        if self._stream is not None:
            self._stream.answered(placed.new, self._silent_s)
            self._stream.go_on(placed.follows)
            return self._stream
        opened = OpenedPrompt(
            of=self.session.wanted.prompt,
            token_ids=placed.context,
            text=placed.text or self.text_of(placed.context),
        )
        prompt = self.policy.begun(opened)
        stream = self._stream = TokenStream(prompt)
        if not np.array_equal(prompt, placed.context):
            stream.go_on(Continuation(token_ids=placed.context, rewritten=True))
        return stream


def _too_long(message: str) -> Refused:
    return Refused(400, CONTEXT_LENGTH, message, param="messages")
