"""Messages to token ids and back, for episodes: the opening, the policy's turns, and what follows a turn.

Sampled ids are never rendered or tokenised again. What follows a turn is found with a stand-in for the policy's message: the
text that the template writes after the stand-in, tokenised by itself. Where the template would write the history otherwise
once the chat goes on (reasoning that it strips, for instance), the whole history is rendered: a rewritten context.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from services.coordinator.episodes.stream import Continuation
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Chat", "Continuation"]

_STAND_IN = "QzStandInQz"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Chat:
    """One tokenizer's way with chats."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, renderer: Literal["auto", "none"] = "auto") -> None:
        """`none` joins messages with newlines, as for base models. Raises ConfigError where there is no chat template."""
        self._tokenizer, self._plain = tokenizer, renderer == "none"
        if not self._plain and not tokenizer.chat_template:
            raise ConfigError(
                "data.template: must be none for this model, whose tokenizer has no chat template, got model"
            )
        self._end = _end_of_turn(self._text, tokenizer) if not self._plain else None

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """[P] int32 ids and text, with the opening of the policy's turn. Raises DataError for what the template refuses."""
        try:
            text = self._text(messages, tools, opening=True)
        except Exception as error:  # a template is a program, and may raise anything
            short = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DataError(f"the chat template refuses the chat: {short}") from error
        if (lost := _left_out(messages, tools, text)) is not None:
            raise DataError(f"the chat template leaves out {lost}")
        return self._encode(text, special=self._plain), text

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """The policy's message in the sampled ids. A call that cannot be read stays text."""
        ids = [int(token) for token in sampled]
        if ids and ids[-1] in self._closing:
            ids = ids[:-1]
        text = str(self._tokenizer.decode(ids, skip_special_tokens=False))
        if self._plain:
            return Message(role="assistant", content=text)
        before = str(self._tokenizer.decode([int(token) for token in context[-16:]], skip_special_tokens=False))
        reasoning, text = _reasoning(text, opened=before.rstrip().endswith("<think>"))
        calls, content = _calls(text) if tools else ((), text)
        return Message(role="assistant", content=content, tool_calls=calls, reasoning=reasoning)

    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        """What follows context + sampled. `history` ends with the policy's message, as `read` gave it; `new` follows it.

        Raises DataError for what the template refuses or leaves out."""
        assert [message.role for message in history[-1:]] == ["assistant"], "the history ends with the policy's message"
        if (tail := self._tail(history, new, tools)) is None:
            return Continuation(token_ids=self.open([*history, *new], tools)[0], rewritten=True)
        if (lost := _left_out(new, (), tail)) is not None:
            raise DataError(f"the chat template leaves out {lost}")
        ids = self._encode(tail, special=False)
        closed = len(sampled) > 0 and int(sampled[-1]) in self._closing
        if closed and self._end is not None:
            assert ids[:1].tolist() == [self._end[0]], "the tail begins with the end of the turn"
            ids = ids[1:]
        return Continuation(token_ids=ids, rewritten=False)

    @property
    def _closing(self) -> set[int]:
        """Ids that end a turn when they are sampled."""
        ends = {self._end[0]} if self._end is not None else set[int]()
        eos = self._tokenizer.eos_token_id
        return ends | {eos} if isinstance(eos, int) else ends

    def _tail(self, history: Sequence[Message], new: Sequence[Message], tools: Sequence[Tool]) -> str | None:
        """The text from the end of the policy's turn on; None where the template does not simply go on."""
        if self._plain:
            return "\n" + "\n".join(message.content for message in new) + "\n"
        said = _standing_in(history[-1])
        try:
            before = self._text(history[:-1], tools, opening=True)
            whole = self._text([*history[:-1], said, *new], tools, opening=True)
        except Exception:  # noqa: BLE001 - a template may refuse the stand-in; the full render says what it refuses
            return None
        if not whole.startswith(before):
            return None
        after = whole[len(before) :]
        parts = [said.content, said.reasoning, *(call.name for call in said.tool_calls)]
        if any(after.count(part) != 1 for part in parts if part):
            return None
        last = max(after.rfind(part) + len(part) for part in parts if part)
        after = after[last:]
        if self._end is None:
            return after if not said.tool_calls else None
        at = after.find(self._end[1])
        return None if at < 0 else after[at:]

    def _text(self, messages: Sequence[Message], tools: Sequence[Tool], *, opening: bool) -> str:
        if self._plain:
            if tools:
                raise DataError(f"data.template: none has no tools, got {[tool.name for tool in tools]}")
            return "\n".join(message.content for message in messages) + "\n"
        text = self._tokenizer.apply_chat_template(
            [_as_dict(message) for message in messages],
            tools=[_tool_as_dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=opening,
        )
        assert isinstance(text, str), "tokenize=False gives text"
        return text

    def _encode(self, text: str, *, special: bool) -> np.ndarray:
        return np.asarray(self._tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int32)


def _end_of_turn(render: Any, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, str] | None:
    """Id and text of the token that the template writes at the end of the policy's turn; None where it writes none."""
    said = [Message(role="user", content="?"), Message(role="assistant", content=_STAND_IN)]
    try:
        last = render(said, (), opening=False).partition(_STAND_IN)[2]
        middle = render([*said, Message(role="user", content="Qz")], (), opening=False).partition(_STAND_IN)[2]
    except Exception:  # noqa: BLE001 - a template may refuse this chat and take others
        return None
    eos = tokenizer.eos_token_id
    for token in tokenizer(middle.partition("Qz")[0], add_special_tokens=False)["input_ids"]:
        text = str(tokenizer.decode([token], skip_special_tokens=False))
        if token == eos or (token in tokenizer.get_added_vocab().values() and text in last):
            return token, text
    return None


def _standing_in(message: Message) -> Message:
    """A message of the same parts, each of which can be found in a text."""
    calls = tuple(
        replace(call, name=f"{_STAND_IN}{index}c", arguments_json="{}") for index, call in enumerate(message.tool_calls)
    )
    reasoning = f"{_STAND_IN}r" if message.reasoning else ""
    # A message of calls alone keeps its content empty, which templates write otherwise than a content with calls.
    content = f"{_STAND_IN}t" if message.content or not (calls or reasoning) else ""
    return replace(message, content=content, tool_calls=calls, reasoning=reasoning)


def _reasoning(text: str, *, opened: bool) -> tuple[str, str]:
    """Reasoning and the rest; `opened`: the opening of the turn has begun the reasoning."""
    stripped = text.lstrip()
    if not (opened or stripped.startswith("<think>")):
        return "", text
    thought, closed, rest = stripped.removeprefix("<think>").partition("</think>")
    return thought.strip("\n"), rest.lstrip("\n") if closed else ""


def _calls(text: str) -> tuple[tuple[ToolCall, ...], str]:
    """Tool calls in the style of Hermes and Qwen, and the text without them."""
    calls: list[ToolCall] = []

    def taken(match: re.Match[str]) -> str:
        try:
            call = json.loads(match[1])
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return match[0]
        if not isinstance(name, str) or not name:
            return match[0]
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(ToolCall(name=name, arguments_json=written))
        return ""

    content = _CALL.sub(taken, text)
    return tuple(calls), content.strip() if calls else text


def _as_dict(message: Message) -> Mapping[str, Any]:
    """As chat templates take messages; arguments that are JSON are objects."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    optional = {"tool_call_id": message.tool_call_id, "name": message.name, "reasoning_content": message.reasoning}
    return fields | {name: value for name, value in optional.items() if value}


def _arguments(call: ToolCall) -> Any:
    try:
        return json.loads(call.arguments_json)
    except (ValueError, RecursionError):
        return call.arguments_json


def _tool_as_dict(tool: Tool) -> dict[str, Any]:
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


def _left_out(messages: Sequence[Message], tools: Sequence[Tool], text: str) -> str | None:
    """The first tool or turn of user or tool that is missing in the text; blanks do not count."""
    written = "".join(text.split())
    for tool in tools:
        if tool.name not in text:
            return f"the tool {tool.name!r}"
    lost = (message.role for message in messages if "".join(message.content.split()) not in written)
    return next((f"the turn of role {role!r}" for role in lost if role not in ("assistant", "system")), None)
