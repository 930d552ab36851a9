"""What an environment may answer: roles, sizes, tools, scores. Checked in the worker process, where an answer leaves the
user's code, and again in the service, because code that the worker runs may have taken the worker over.

A wrong answer is a `WrongAnswer` whose one line names the rule. Frames are JSON objects (sandbox/frames.py).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from services.reward.functions import as_number
from sluice.environments import Message, Opening, Reply, Row, Score, Tool, ToolCall
from sluice.limits import LARGEST_SCORE, MOST_PARTS, NAME_CHARACTERS, PART_CHARACTERS, TEXT_CHARACTERS

MESSAGE_BYTES: Final = 1 << 20
"""UTF-8 bytes of one message's content. Chosen: more tokens than a context of the largest models."""
MOST_MESSAGES: Final = 64
ANSWER_BYTES: Final = 2 << 20
"""UTF-8 bytes of all texts of one answer: six times as many, escaped as JSON, fit into a frame."""
MOST_TOOLS: Final = 64
TOOLS_BYTES: Final = 256 << 10
"""Bytes of the schemas of all tools, as JSON."""

_OPENING_ROLES = ("system", "user", "assistant", "tool")
_REPLY_ROLES = ("tool", "user")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class WrongAnswer(ValueError):
    """An answer of another form than environments may give."""


def opening_of(given: object, *, tools: object = ()) -> Opening:
    """What `open` returned, checked; `tools` are the class's, where the opening names none. Raises WrongAnswer."""
    if given is None:
        given = Opening()
    elif isinstance(given, list | tuple):
        given = Opening(messages=given)
    if not isinstance(given, Opening):
        raise WrongAnswer(f"open must return an Opening, a list of messages or None, got {type(given).__name__}")
    messages = _messages(given.messages, roles=_OPENING_ROLES)
    return Opening(messages=messages, tools=_tools(given.tools or tools))


def reply_of(given: object, *, to: Message, scores: bool, last: bool) -> Reply:
    """What `step` returned, checked; after the `last` turn the episode is done, with a score of 0 where it lacks one.

    A text is a message of the role user, or the answer to the first tool call where the turn made one. Raises WrongAnswer.
    """
    if isinstance(given, str):
        given = Reply(messages=(_spoken(given, to),))
    if not isinstance(given, Reply):
        raise WrongAnswer(f"step must return a Reply or a text, got {type(given).__name__}")
    if not isinstance(given.done, bool):
        raise WrongAnswer(f"done must be True or False, got {type(given.done).__name__}")
    if last and not given.done:
        score = given.score or (Score(score=0.0) if scores else None)
        given = replace(given, done=True, score=score)
    messages = _messages(given.messages, roles=_REPLY_ROLES)
    if not messages and not given.done:
        raise WrongAnswer("step must return messages unless the episode is done")
    return Reply(messages=messages, done=given.done, score=_score(given.score, scores=scores, done=given.done))


def frame_of(value: Opening | Reply | Message | Row) -> dict[str, Any]:
    """As JSON takes it."""
    return asdict(value)


def message_in(frame: Mapping[str, Any]) -> Message:
    """The message of a frame."""
    fields: dict[str, Any] = {**frame, "tool_calls": tuple(ToolCall(**call) for call in frame["tool_calls"])}
    return Message(**fields)


def row_in(frame: Mapping[str, Any]) -> Row:
    """The row of a frame."""
    fields: dict[str, Any] = {**frame, "messages": tuple(map(message_in, frame["messages"]))}
    return Row(**fields)


def opening_in(frame: Mapping[str, Any]) -> Opening:
    """The checked opening of a frame. Raises WrongAnswer."""
    try:
        tools = [Tool(**tool) for tool in frame["tools"]]
        return opening_of(Opening(messages=list(map(message_in, frame["messages"])), tools=tools))
    except (TypeError, KeyError, AttributeError) as error:
        raise WrongAnswer(f"its process sent what is no opening: {error!r:.200}") from error


def reply_in(frame: Mapping[str, Any], *, to: Message, scores: bool) -> Reply:
    """The checked reply of a frame. Raises WrongAnswer."""
    try:
        score = None if frame["score"] is None else Score(**frame["score"])
        reply = Reply(messages=list(map(message_in, frame["messages"])), done=frame["done"], score=score)
        return reply_of(reply, to=to, scores=scores, last=False)
    except (TypeError, KeyError, AttributeError) as error:
        raise WrongAnswer(f"its process sent what is no reply: {error!r:.200}") from error


def _spoken(text: str, to: Message) -> Message:
    if not to.tool_calls:
        return Message(role="user", content=text)
    call = to.tool_calls[0]
    return Message(role="tool", content=text, tool_call_id=call.id, name=call.name)


def _messages(given: object, *, roles: Sequence[str]) -> tuple[Message, ...]:
    if not isinstance(given, list | tuple):
        raise WrongAnswer(f"messages must be a list, got {type(given).__name__}")
    if len(given) > MOST_MESSAGES:
        raise WrongAnswer(f"messages: at most {MOST_MESSAGES} in one answer, got {len(given)}")
    total = 0
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        if not isinstance(message, Message):
            raise WrongAnswer(f"{where} must be a Message, got {type(message).__name__}")
        if message.role not in roles:
            raise WrongAnswer(f"{where}.role must be one of {', '.join(roles)}, got {message.role!r:.60}")
        total += _text(message.content, f"{where}.content", MESSAGE_BYTES)
        total += _text(message.reasoning, f"{where}.reasoning", MESSAGE_BYTES)
        total += _text(message.tool_call_id, f"{where}.tool_call_id", NAME_CHARACTERS)
        total += _text(message.name, f"{where}.name", NAME_CHARACTERS)
        total += _calls(message, where)
        if total > ANSWER_BYTES:
            raise WrongAnswer(f"messages: at most {ANSWER_BYTES} bytes in one answer, got more at {where}")
    return tuple(given)


def _calls(message: Message, where: str) -> int:
    if (message.tool_calls or message.reasoning) and message.role != "assistant":
        raise WrongAnswer(f"{where}: tool_calls and reasoning are of the role assistant alone, got {message.role}")
    if len(message.tool_calls) > MOST_MESSAGES:
        raise WrongAnswer(f"{where}.tool_calls: at most {MOST_MESSAGES}, got {len(message.tool_calls)}")
    total = 0
    for call in message.tool_calls:
        if not isinstance(call, ToolCall):
            raise WrongAnswer(f"{where}.tool_calls must be ToolCalls, got {type(call).__name__}")
        total += _text(call.name, f"{where}.tool_calls.name", NAME_CHARACTERS)
        total += _text(call.id, f"{where}.tool_calls.id", NAME_CHARACTERS)
        total += _text(call.arguments_json, f"{where}.tool_calls.arguments_json", MESSAGE_BYTES)
    return total


def _text(value: object, where: str, most_bytes: int) -> int:
    """Its UTF-8 bytes. A text that is too long is refused before anything copies it."""
    if not isinstance(value, str):
        raise WrongAnswer(f"{where} must be text, got {type(value).__name__}")
    if len(value) > most_bytes:
        raise WrongAnswer(f"{where} must be at most {most_bytes} bytes, got {len(value)} characters")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise WrongAnswer(f"{where} must be text that UTF-8 can encode: {error.reason} at {error.start}") from error
    if size > most_bytes:
        raise WrongAnswer(f"{where} must be at most {most_bytes} bytes, got {size}")
    return size


def _tools(given: object) -> tuple[Tool, ...]:
    if not isinstance(given, list | tuple):
        raise WrongAnswer(f"tools must be a list of Tools, got {type(given).__name__}")
    if others := [type(tool).__name__ for tool in given if not isinstance(tool, Tool)]:
        raise WrongAnswer(f"tools must be a list of Tools of sluice.environments, got one of type {others[0]}")
    if len(given) > MOST_TOOLS:
        raise WrongAnswer(f"tools: at most {MOST_TOOLS}, got {len(given)}")
    names, total = set[str](), 0
    for tool in given:
        if not isinstance(tool.name, str) or not _TOOL_NAME.fullmatch(tool.name) or tool.name in names:
            raise WrongAnswer(f"tools: a name is 1 to 64 of A-Z a-z 0-9 _ . - and unique, got {tool.name!r:.80}")
        names.add(tool.name)
        total += _text(tool.description, f"tool {tool.name}: description", TOOLS_BYTES) + _schema(tool)
    if total > TOOLS_BYTES:
        raise WrongAnswer(f"tools: at most {TOOLS_BYTES} bytes together, got {total}")
    return tuple(given)


def _schema(tool: Tool) -> int:
    """The bytes of the parameters as JSON."""
    given, where = tool.parameters, f"tool {tool.name}: parameters"
    if not isinstance(given, Mapping):
        raise WrongAnswer(f"{where} must be a mapping, a JSON Schema, got {type(given).__name__}")
    if not given:
        return 0
    if given.get("type") != "object":
        raise WrongAnswer(f"{where}.type must be 'object', got {given.get('type')!r:.60}")
    properties = given.get("properties", {})
    if not isinstance(properties, Mapping) or not all(isinstance(one, Mapping) for one in properties.values()):
        raise WrongAnswer(f"{where}.properties must map names to JSON Schemas, got {properties!r:.80}")
    required = given.get("required", [])
    if not isinstance(required, list | tuple) or not all(name in properties for name in required):
        raise WrongAnswer(f"{where}.required must be a list of names among properties, got {required!r:.80}")
    try:
        return len(json.dumps(dict(given), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise WrongAnswer(f"{where} must be JSON: {error}") from error


def _score(given: object, *, scores: bool, done: bool) -> Score | None:
    if given is None:
        if scores and done:
            raise WrongAnswer("an environment with `scores = True` must give a score when done")
        return None
    if not scores:
        raise WrongAnswer("a score is for environments with `scores = True` alone")
    if not done:
        raise WrongAnswer("a score comes with done=True alone")
    if not isinstance(given, Score) or not isinstance(given.parts, Mapping):
        raise WrongAnswer(f"score must be a Score, with a mapping as its parts, got {type(given).__name__}")
    if len(given.parts) > MOST_PARTS or not all(
        isinstance(name, str) and 0 < len(name) <= PART_CHARACTERS for name in given.parts
    ):
        raise WrongAnswer(f"score.parts: at most {MOST_PARTS}, with names of 1 to {PART_CHARACTERS} characters")
    acc = None if given.acc is None else _number(given.acc, "acc")
    if acc is not None and not 0 <= acc <= 1:
        raise WrongAnswer(f"score.acc must be in [0, 1], got {acc:g}")
    if not isinstance(given.extracted, str):
        raise WrongAnswer(f"score.extracted must be text, got {type(given.extracted).__name__}")
    return Score(
        score=_number(given.score, "score"),
        acc=acc,
        parts={_sendable(name): _number(value, f"parts[{name}]") for name, value in given.parts.items()},
        extracted=_sendable(given.extracted[:TEXT_CHARACTERS]),
    )


def _number(value: object, what: str) -> float:
    number = as_number(value)
    if number is None or not abs(number) <= LARGEST_SCORE:
        raise WrongAnswer(
            f"score.{what} must be a finite number of a size of at most {LARGEST_SCORE:g}, got {value!r:.60}"
        )
    return number


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
