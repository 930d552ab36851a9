"""Answers the tool calls of a turn: one message of the role tool a call. What is wrong with a call is told to the policy."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from sluice.environments import Message, Reply, ToolCall

MOST_CALLS: Final = 16
"""Calls of one turn that are carried out."""
MOST_ANSWERED: Final = 64
"""Calls of one turn that are answered at all."""

Run = Callable[[Mapping[str, Any]], str]
"""Arguments -> the text that the policy reads. A ValueError's text is told as an error."""


def answer_calls(message: Message, run: Mapping[str, Run]) -> Reply:
    """The answers to a turn's calls, by the tools' names; a turn without calls ends the episode."""
    if not message.tool_calls:
        return Reply(done=True)
    calls = message.tool_calls[:MOST_ANSWERED]
    return Reply(messages=[_answer(call, run, place) for place, call in enumerate(calls)])


def text_in(arguments: Mapping[str, Any], name: str, *, most: int) -> str:
    """An argument that is a text. Raises ValueError."""
    value = arguments.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not empty")
    if len(value) > most:
        raise ValueError(f"{name} must be at most {most} characters, got {len(value)}")
    return value


def _answer(call: ToolCall, run: Mapping[str, Run], place: int) -> Message:
    return Message(role="tool", content=_said(call, run, place), tool_call_id=call.id[:200], name=call.name[:200])


def _said(call: ToolCall, run: Mapping[str, Run], place: int) -> str:
    if place >= MOST_CALLS:
        return f"error: at most {MOST_CALLS} calls in one turn are carried out"
    if call.name not in run:
        return f"error: there is no tool {call.name[:60]!r}; the tools are {', '.join(run)}"
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except (ValueError, RecursionError):
        return "error: the arguments must be a JSON object"
    if not isinstance(arguments, dict):
        return "error: the arguments must be a JSON object"
    try:
        return run[call.name](arguments)
    except ValueError as error:
        return f"error: {error}"
