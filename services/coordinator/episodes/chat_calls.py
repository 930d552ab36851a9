"""Calls of a Chat that leave the event loop where they may take over 5 ms."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import numpy as np

from services.coordinator.episodes.token_stream import Continuation
from sluice.environments import Message, Tool

T = TypeVar("T")

SHORT_CHARACTERS: Final = 8_192
"""A chat of at most so many characters, its tools' too, is rendered and tokenised in the event loop: 1 to 3 ms."""
SHORT_TOKENS: Final = 2_048


class ChatLike(Protocol):
    """services/coordinator/episodes/chat.py: Chat."""

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]: ...
    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message: ...
    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation: ...


class ChatCalls:
    """One Chat. One thread makes the long calls, because a tokenizer is not made for several at once."""

    def __init__(self, chat: ChatLike) -> None:
        self._chat, self._thread = chat, ThreadPoolExecutor(max_workers=1, thread_name_prefix="chat")
        self._one_at_a_time = asyncio.Lock()

    async def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """Chat.open."""
        return await self._call(_is_short(messages, tools), lambda: self._chat.open(messages, tools))

    async def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """Chat.read."""
        short = len(sampled) <= SHORT_TOKENS
        return await self._call(short, lambda: self._chat.read(sampled, context=context, tools=tools))

    async def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        """Chat.extend."""
        short = len(context) + len(sampled) <= SHORT_TOKENS and _is_short(new, tools)
        return await self._call(
            short,
            lambda: self._chat.extend(context=context, sampled=sampled, history=history, new=new, tools=tools),
        )

    async def _call(self, short: bool, call: Callable[[], T]) -> T:
        async with self._one_at_a_time:
            return call() if short else await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _is_short(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    characters = sum(len(one.content) + len(one.reasoning) for one in messages)
    characters += sum(len(call.arguments_json) for one in messages for call in one.tool_calls)
    for tool in tools:
        if (
            characters > SHORT_CHARACTERS
        ):  # a schema is at most SCHEMA_CHARACTERS long: soon written, but not 128 of them
            break
        characters += len(tool.description) + len(str(tool.parameters))
    return characters <= SHORT_CHARACTERS
