"""Text and tokens of conversations. Sampled ids are never rendered nor tokenised again (docs/environments.md, Tokens)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from services.coordinator.episodes.chat_template import PlainChat, TemplateChat
from services.coordinator.episodes.continuation import Continuation
from sluice.environments import Message, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chat(Protocol):
    """Conversations in one model's form."""

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """[P] int32 ids and the text, with the opening of the policy's turn. Raises DataError for what cannot be written."""
        ...

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """The assistant's message in sampled ids, which followed the ids `context`."""
        ...

    def write(self, message: Message, *, history: Sequence[Message], tools: Sequence[Tool]) -> np.ndarray:
        """[T] int32 ids with which a model of this form would write `message` after `history`. Raises DataError."""
        ...

    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        """How the conversation goes on after `history` and the turn `sampled`, with the messages `new`. Raises
        DataError.
        """
        ...


def chat_of(
    tokenizer: "PreTrainedTokenizerBase", *, template: Literal["model", "none"], renderer: str = "auto"
) -> Chat:
    """The conversations of a model. `auto` takes the model's own chat template, `renderer` a family of the `renderers` library.

    Raises ConfigError for a family that is not there, or that does not fit the tokenizer.
    """
    if template == "none":
        return PlainChat(tokenizer)
    if renderer == "auto":
        return TemplateChat(tokenizer)
    from services.coordinator.episodes.family import FamilyChat

    return FamilyChat(tokenizer, renderer)
