"""Which tokens the policy reads for an agent's request: the stream so far goes on, or a training sequence of its own begins.

A conversation goes on where a request begins with the messages that were asked before and with the turn that the policy
then wrote (its content and its calls; a thought may be left out, as agents do). Sampled ids are never rendered again: a
fork of an earlier turn, too, is made of that turn's ids and of what follows. Only a request that continues no turn is
rendered as a whole. Ids that an agent sends itself are taken as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.coordinator.agents.asking import Ask
from services.coordinator.episodes.chat_calls import ChatCalls
from services.coordinator.episodes.continuation import Continuation
from sluice.environments import Message, Tool
from sluice.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Placed:
    """Where a request stands."""

    asked: Sequence[Message] | None
    """The request's messages, without the ids that calls were given here; None for token ids."""
    tools: Sequence[Tool]
    follows: Continuation
    """After the latest turn; `rewritten` where a sequence of its own begins."""
    context: np.ndarray
    """[C] int32: what the policy reads."""
    new: Sequence[Message] = ()
    """What the agent answered to the latest turn; empty where a sequence of its own begins."""
    text: str = ""
    """Of a chat that was rendered as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Turn:
    """A turn that was sampled."""

    placed: Placed
    sampled: np.ndarray
    said: Message

    @property
    def stream(self) -> np.ndarray:
        return np.concatenate([self.placed.context, self.sampled]).astype(np.int32)


class Conversation:
    """The conversations of one episode; an agent may lead several."""

    def __init__(self, chat: ChatCalls) -> None:
        self._chat = chat
        self._turns: list[_Turn] = []
        self._given: dict[str, str] = {}
        """Ids that calls were given here -> the name of the tool."""

    async def place(self, ask: Ask) -> Placed:
        """The tokens of a request. Raises DataError for a conversation that cannot be written."""
        if ask.token_ids is not None:
            return self._as_sent(ask.token_ids)
        asked = [self._plain(message) for message in ask.messages]
        if asked[-1].role == "assistant":
            raise DataError("messages: the last one must not be the assistant's, whose turn it is now")
        for turn in reversed(self._turns):
            if turn.placed.asked == asked and list(turn.placed.tools) == list(ask.tools):
                return _anew(asked, ask.tools, turn.placed.context)
        continued = [turn for turn in self._turns if _continues(turn, asked, ask.tools)]
        if continued:
            # Of two the one with more turns, and of equals the later one.
            latest = max(reversed(continued), key=lambda turn: len(turn.placed.asked or ()))
            return await self._after(latest, asked)
        ids, text = await self._chat.open(asked, ask.tools)
        return replace(_anew(asked, ask.tools, ids), text=text)

    async def said(self, placed: Placed, sampled: np.ndarray) -> Message:
        """Takes the turn that followed, and gives its message; calls without an id get one."""
        said = await self._chat.read(sampled, context=placed.context, tools=placed.tools)
        self._turns.append(_Turn(placed=placed, sampled=sampled, said=said))
        calls = [
            replace(call, id=call.id or f"call_{len(self._turns) - 1}_{place}")
            for place, call in enumerate(said.tool_calls)
        ]
        self._given |= {call.id: call.name for call, own in zip(calls, said.tool_calls, strict=True) if not own.id}
        return replace(said, tool_calls=tuple(calls))

    async def _after(self, turn: _Turn, asked: Sequence[Message]) -> Placed:
        placed = turn.placed
        assert placed.asked is not None
        new = asked[len(placed.asked) + 1 :]
        follows = await self._chat.extend(
            context=placed.context, sampled=turn.sampled, history=placed.asked, new=new, tools=placed.tools
        )
        if follows.rewritten:
            return _anew(asked, placed.tools, follows.token_ids)
        context = np.concatenate([turn.stream, follows.token_ids]).astype(np.int32)
        if turn is not self._turns[-1]:
            return _anew(asked, placed.tools, context)
        return Placed(asked=asked, tools=placed.tools, follows=follows, context=context, new=new)

    def _as_sent(self, ids: np.ndarray) -> Placed:
        stream = self._turns[-1].stream if self._turns else None
        if stream is None or not np.array_equal(ids[: len(stream)], stream):
            return _anew(None, (), ids)
        follows = Continuation(token_ids=ids[len(stream) :], rewritten=False)
        return Placed(asked=None, tools=(), follows=follows, context=ids)

    def _plain(self, message: Message) -> Message:
        """The message without ids that were given here: templates write ids only where the policy itself does."""
        calls = tuple(replace(call, id="") if call.id in self._given else call for call in message.tool_calls)
        if (name := self._given.get(message.tool_call_id)) is not None:
            return replace(message, tool_call_id="", name=message.name or name)
        return replace(message, tool_calls=calls)


def _anew(asked: Sequence[Message] | None, tools: Sequence[Tool], ids: np.ndarray) -> Placed:
    return Placed(asked=asked, tools=tools, follows=Continuation(token_ids=ids, rewritten=True), context=ids)


def _continues(turn: _Turn, asked: Sequence[Message], tools: Sequence[Tool]) -> bool:
    before = turn.placed.asked
    if before is None or len(asked) <= len(before) + 1 or list(turn.placed.tools) != list(tools):
        return False
    return list(asked[: len(before)]) == list(before) and _echoes(asked[len(before)], turn.said)


def _echoes(message: Message, said: Message) -> bool:
    """Whether a message is the turn, as agents send it back."""
    calls = [(call.name, call.arguments_json) for call in said.tool_calls]
    return (
        message.role == "assistant"
        and message.content.strip() == said.content.strip()
        and message.reasoning.strip() in ("", said.reasoning.strip())
        and [(call.name, call.arguments_json) for call in message.tool_calls] == calls
    )
