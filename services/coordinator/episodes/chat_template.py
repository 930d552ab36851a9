"""The chat template of any model, extended turn by turn without a second rendering of what the policy wrote.

A template is a program, so how a conversation goes on is found by rendering: with the turn as the last message, and with the
new messages after it. Where the first text begins the second one, the difference is what the template writes for the new
messages. In front of it comes what the template writes behind any turn, less the end-of-turn token that the policy has sampled
itself. Where the template writes the history anew (it strips the reasoning of former turns, for example), nothing can be
appended: then the second text is the context of a new training sequence. The second text must also begin with what the policy
read before the turn, because some templates change a turn only once another one follows it.

Only new text is tokenised. Reasoning and calls of tools are looked for as `<think>` and `<tool_call>{"name", "arguments"}`,
which most templates without a renderer of their own use.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from services.coordinator.episodes.continuation import Continuation, rendered_anew
from sluice.environments import Message, Tool, ToolCall
from sluice.errors import DataError
from sluice.limits import NAME_CHARACTERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAND_IN: Final = "qvtzwx"
"""Stands for a turn of the policy where only what the template writes behind the turn is wanted."""

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*(?:<think>)?(.*?)</think>", re.DOTALL)


class TemplateChat:
    """Conversations in the chat template of a tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._knows_reasoning: bool | None = None
        # Some models name no end of a turn among their special tokens, and only mark it as one (Gemma, Phi).
        marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = marked | set(tokenizer.all_special_ids)

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """[P] int32 ids and the text, with the opening of the policy's turn. Raises DataError."""
        text = self._render(messages, tools, opening=True)
        if lost := [tool.name for tool in tools if tool.name not in text]:
            raise DataError(
                f"the chat template leaves out the tool {lost[0]!r}: take a model whose template writes tools, or name the "
                "model's family in model.renderer"
            )
        _refuse_left_out(messages, text)
        return self._ids(text), text

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """The assistant's message in sampled ids; without `tools` no text is a call."""
        text = text_of(self._tokenizer, self._without_end(sampled))
        opened = text_of(self._tokenizer, context[-8:]).rstrip().endswith("<think>")
        reasoning = ""
        if (opened or text.lstrip().startswith("<think>")) and (thought := _THOUGHT.match(text)):
            reasoning, text = thought[1].strip("\n"), text[thought.end() :]
        calls = [call for block in _CALL.findall(text) if (call := _call(block))] if tools else []
        if calls:
            text = _CALL.sub(lambda block: "" if _call(block[1]) else block[0], text).rstrip()
        return Message(
            role="assistant",
            content=text.lstrip("\n") if reasoning else text,
            tool_calls=tuple(calls),
            reasoning=reasoning,
        )

    def write(self, message: Message, *, history: Sequence[Message], tools: Sequence[Tool]) -> np.ndarray:
        """[T] int32 ids of a turn in the template's own form, with the end of the turn; in the form that `read` reads where the
        template opens turns with more than their beginning. Raises DataError."""
        before = self._render(history, tools, opening=True)
        after = self._render([*history, message], tools, opening=False)
        calls = [{"name": call.name, "arguments": _arguments(call.arguments_json)} for call in message.tool_calls]
        plain = message.content + "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
        return self._ids(after[len(before) :].rstrip() if after.startswith(before) else plain)

    def extend(
        self,
        *,
        context: np.ndarray,
        sampled: np.ndarray,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
    ) -> Continuation:
        """How the conversation goes on after `history` and the turn `sampled`, with the messages `new`. Raises DataError."""
        turn = self.read(sampled, context=context, tools=tools)
        read = self._render(history, tools, opening=True)
        before = self._render([*history, turn], tools, opening=False)
        after = self._render([*history, turn, *new], tools, opening=True)
        extends = after.startswith(before) and after.startswith(read)
        if not extends or not self._keeps_reasoning(history, turn, new, tools):
            _refuse_left_out(new, after)
            return rendered_anew(self._ids(after), context=context, sampled=sampled)
        stand_in = self._render([*history, Message(role="assistant", content=_STAND_IN)], tools, opening=False)
        if _STAND_IN not in stand_in:
            raise DataError("the chat template leaves out what the model says")
        behind = stand_in[stand_in.rindex(_STAND_IN) + len(_STAND_IN) :]
        tail = behind + after[len(before) :]
        _refuse_left_out(new, tail)
        # The end of the turn is tokenised with what follows: some tokenizers put a blank before a text's first word.
        ids = self._ids(tail)
        sampled_the_end = len(sampled) > 0 and ids[:1].tolist() == [int(sampled[-1])]
        special = len(ids) > 0 and int(ids[0]) in self._special
        return Continuation(token_ids=ids[1:] if sampled_the_end and special else ids, rewritten=False)

    def _keeps_reasoning(
        self, history: Sequence[Message], turn: Message, new: Sequence[Message], tools: Sequence[Tool]
    ) -> bool:
        """Whether the reasoning is still written once `new` follows. A stand-in: a thought may recur in the chat."""
        if not turn.reasoning:
            return True
        return _STAND_IN in self._render([*history, replace(turn, reasoning=_STAND_IN), *new], tools, opening=True)

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], *, opening: bool) -> str:
        chat = [as_openai(message if self._sets_apart() else _inline(message)) for message in messages]
        functions: list[Any] | None = [{"type": "function", "function": as_function(tool)} for tool in tools] or None
        return self._apply(chat, functions, opening=opening)

    def _sets_apart(self) -> bool:
        """Whether the template writes a message's `reasoning_content`; where it does not, the text has the reasoning."""
        if self._knows_reasoning is None:
            turn = Message(role="assistant", content="?", reasoning=_STAND_IN)
            chat = [{"role": "user", "content": "?"}, as_openai(turn)]
            self._knows_reasoning = _STAND_IN in self._apply(chat, None, opening=False)
        return self._knows_reasoning

    def _apply(self, chat: list[dict[str, Any]], functions: list[Any] | None, *, opening: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                chat, tools=functions, tokenize=False, add_generation_prompt=opening
            )
        except Exception as error:  # a template is a program, and may raise anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise DataError(f"the chat template refuses the conversation: {said}") from error
        assert isinstance(text, str), "tokenize=False gives text"
        return text

    def _without_end(self, sampled: np.ndarray) -> np.ndarray:
        special = len(sampled) > 0 and int(sampled[-1]) in self._special
        ends = special and text_of(self._tokenizer, sampled[-1:]) not in ("</think>", "</tool_call>")
        return sampled[:-1] if ends else sampled

    def _ids(self, text: str) -> np.ndarray:
        return ids_of(self._tokenizer, text)


class PlainChat:
    """Conversations without a template, as a base model has them (`data.template: none`): the contents, joined by newlines.

    The policy's turn ends with the end token, or where its budget ends; what follows begins on a new line.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def open(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[np.ndarray, str]:
        """[P] int32 ids and the text. Raises DataError for tools, which nothing would tell the policy of."""
        if tools:
            raise DataError(
                f"data.template: none knows no tools, and the environment has {tools[0].name!r}: set it to model"
            )
        text = "\n".join(message.content for message in messages)
        return ids_of(self._tokenizer, text, special=True), text

    def read(self, sampled: np.ndarray, *, context: np.ndarray, tools: Sequence[Tool]) -> Message:
        """The text of the sampled ids."""
        return Message(role="assistant", content=text_of(self._tokenizer, sampled, special=False))

    def write(self, message: Message, *, history: Sequence[Message], tools: Sequence[Tool]) -> np.ndarray:
        """[T] int32 ids of the text."""
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
        """The new messages' text, on a new line."""
        text = "\n" + "\n".join(message.content for message in new)
        return Continuation(token_ids=ids_of(self._tokenizer, text), rewritten=False)


def _refuse_left_out(messages: Sequence[Message], text: str) -> None:
    """Raises DataError for a turn of user or tool that the template has left out; blanks do not count.

    Some templates write what a tool answered as a string of JSON.
    """
    written = "".join(text.split())
    for message in messages:
        forms = (message.content, json.dumps(message.content, ensure_ascii=False))
        if message.role in ("user", "tool") and not any("".join(form.split()) in written for form in forms):
            raise DataError(f"the chat template leaves out the turn of role {message.role!r}")


def _inline(message: Message) -> Message:
    """The message with its reasoning in the text, as the policy wrote it."""
    if not message.reasoning:
        return message
    return replace(message, content=f"<think>\n{message.reasoning}\n</think>\n\n{message.content}", reasoning="")


def as_openai(message: Message) -> dict[str, Any]:
    """A message as templates and renderers take it; arguments that are a JSON object come as one."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        found["reasoning_content"] = message.reasoning
    if message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": _arguments(call.arguments_json)}}
            | ({"id": call.id} if call.id else {})
            for call in message.tool_calls
        ]
    return (
        found
        | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})
        | ({"name": message.name} if message.name else {})
    )


def ids_of(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool = False) -> np.ndarray:
    """int32 token ids of a text, with the tokenizer's own special tokens or without. Raises DataError."""
    try:
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exception
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(f"the tokenizer refuses {text[:80]!r}: {said}") from error
    return np.asarray(ids, np.int32)


def text_of(tokenizer: "PreTrainedTokenizerBase", ids: np.ndarray, *, special: bool = True) -> str:
    """The text of token ids, with the special tokens or without."""
    text = tokenizer.decode(ids, skip_special_tokens=not special)
    assert isinstance(text, str), "one sequence gives one text"
    return text


def as_function(tool: Tool) -> dict[str, Any]:
    """A tool as templates and renderers take it."""
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {"name": tool.name, "description": tool.description, "parameters": parameters}


def _arguments(text: str) -> Mapping[str, Any] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _call(block: str) -> ToolCall | None:
    """The call in a block of JSON; None for anything else."""
    try:
        value = json.loads(block)
    except (ValueError, RecursionError):
        return None
    return call_of(value.get("name"), value.get("arguments", {})) if isinstance(value, dict) else None


def call_of(name: object, arguments: object, *, call_id: str = "") -> ToolCall | None:
    """A call as the policy wrote it; None for one that no wire carries: another name than a short text, half of a surrogate
    pair, arguments that are nested too deeply."""
    if not isinstance(name, str) or len(name) > NAME_CHARACTERS:
        return None
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        f"{name}{text}".encode()
    except (ValueError, RecursionError):
        return None
    return ToolCall(name=name, arguments_json=text, id=call_id)
