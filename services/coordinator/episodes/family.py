"""Conversations of the model families for which the `renderers` library writes tokens itself, instead of the template.

The library knows what closes a turn in each family, keeps or strips reasoning as the family's template does, and reads calls
from token ids. The import costs a second, so it waits for the first episode.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from services.coordinator.episodes.chat_template import as_function, as_openai, call_of, ids_of, text_of
from services.coordinator.episodes.continuation import Continuation, rendered_anew
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FamilyChat:
    """Conversations of one family. Raises ConfigError for a family that the library does not know, or another tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", family: str) -> None:
        from renderers import create_renderer
        from renderers.configs import config_from_name

        try:
            config: Any = config_from_name(family)
            if config is None:
                raise ValueError("there is no such renderer")
            self._renderer: Any = create_renderer(tokenizer, config)
        except Exception as error:  # the library raises anything for a tokenizer of another family
            said = " ".join(str(error).split())[:300]
            raise ConfigError(f"model.renderer: {family} does not fit this model's tokenizer: {said}") from error
        self._tokenizer = tokenizer

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """[P] int32 ids and the text, with the opening of the policy's turn. Raises DataError."""
        ids = self._render(messages, tools)
        return ids, text_of(self._tokenizer, ids)

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """The assistant's message in sampled ids."""
        try:
            parsed = self._renderer.parse_response(sampled.tolist(), tools=_specs(tools), prompt_ids=context.tolist())
        except Exception:  # noqa: BLE001 - of any kind, for what a policy may write: brackets or digits without end
            return Message(role="assistant", content=text_of(self._tokenizer, sampled, special=False))
        calls = [(call.raw, _call(call)) for call in parsed.tool_calls]
        return Message(
            role="assistant",
            content="".join([parsed.content, *(raw for raw, call in calls if call is None)]),
            tool_calls=tuple(call for _, call in calls if call is not None),
            reasoning=parsed.reasoning_content or "",
        )

    def write(self, message: Message, *, history: Sequence[Message], tools: Sequence[Tool]) -> np.ndarray:
        """[T] int32 ids of a turn in the family's form. Raises DataError."""
        before = self._render(history, tools)
        after = self._render([*history, message], tools, opening=False)
        if np.array_equal(after[: len(before)], before):
            return after[len(before) :]
        return ids_of(self._tokenizer, message.content)

    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        """How the conversation goes on after the turn `sampled`, with the messages `new`. Raises DataError."""
        try:
            bridged = self._renderer.bridge_to_next_turn(
                context.tolist(), sampled.tolist(), [as_openai(message) for message in new], tools=_specs(tools)
            )
        except Exception as error:  # as in `_render`
            raise _refused(error) from error
        if bridged is None:
            turn = self.read(sampled, context=context, tools=tools)
            return rendered_anew(self._render([*history, turn, *new], tools), context=context, sampled=sampled)
        ids = np.asarray(bridged if isinstance(bridged, list) else bridged.token_ids, np.int32)
        stream = np.concatenate([context, sampled])
        if not np.array_equal(ids[: len(stream)], stream):
            raise DataError("the renderer has changed tokens that were sampled")
        return Continuation(token_ids=ids[len(stream) :], rewritten=False)

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], *, opening: bool = True) -> np.ndarray:
        try:
            ids = self._renderer.render_ids(
                [as_openai(message) for message in messages], tools=_specs(tools), add_generation_prompt=opening
            )
        except Exception as error:  # of any kind, for a conversation that the family does not have
            raise _refused(error) from error
        return np.asarray(ids, np.int32)


def _specs(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    return [as_function(tool) for tool in tools] or None


def _call(parsed: Any) -> ToolCall | None:
    """A call that the library has read."""
    arguments = parsed.arguments if isinstance(parsed.arguments, str) else parsed.arguments or {}
    return call_of(parsed.name, arguments, call_id=getattr(parsed, "id", None) or "")


def _refused(error: Exception) -> DataError:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return DataError(f"the renderer refuses the conversation: {said}")
