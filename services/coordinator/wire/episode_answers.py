"""Answers of environments, checked: the one place where they become messages, tools and scores that a run goes on with.

An answer that breaks the contract (protos/sluice/v1/environment.proto) raises WrongAnswer with the server's name and the
rule. Text is UTF-8 already, because protobuf refuses other strings.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from services.coordinator.state.member import EnvironmentInfo
from services.coordinator.state.ports import WrongAnswer
from sluice.environments import Message, Opening, Reply, Score, Tool
from sluice.limits import (
    LARGEST_SCORE,
    MOST_PARTS,
    NAME_CHARACTERS,
    PART_CHARACTERS,
    SCHEMA_CHARACTERS,
    TEXT_CHARACTERS,
)
from sluice.rpc.chat_messages import message_from, tool_from
from sluice.v1 import common_pb2, environment_pb2

MOST_MESSAGES: Final = 64
"""Messages of one answer."""
MESSAGE_CHARACTERS: Final = 1 << 20
MOST_TOOLS: Final = 128
"""OpenAI's API takes as many."""
ANSWER_BYTES: Final = 16 << 20
"""The largest answer that is received at all."""

_OPENING_ROLES = ("system", "user", "assistant", "tool")
_REPLY_ROLES = ("tool", "user")


def opening_of(who: str, answer: environment_pb2.OpenResponse) -> Opening:
    """How an episode begins. Raises WrongAnswer."""
    if len(answer.version) > NAME_CHARACTERS:
        raise WrongAnswer(
            f"{who} has {len(answer.version)} characters of version, at most {NAME_CHARACTERS} are allowed"
        )
    if len(answer.tools) > MOST_TOOLS:
        raise WrongAnswer(f"{who} has {len(answer.tools)} tools, at most {MOST_TOOLS} are allowed")
    tools = [_tool(f"{who}: tool {place}", tool) for place, tool in enumerate(answer.tools)]
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise WrongAnswer(f"{who} has two tools of the name {twice[0]!r}")
    return Opening(messages=_messages(who, answer.messages, roles=_OPENING_ROLES), tools=tools)


def reply_of(who: str, answer: environment_pb2.StepResponse, *, hosted: EnvironmentInfo | None, last: bool) -> Reply:
    """The answer to a turn; `hosted`: what the server said of the environment when it registered. Raises WrongAnswer."""
    messages = _messages(who, answer.messages, roles=_REPLY_ROLES)
    if not messages and not (answer.done or last):
        raise WrongAnswer(f"{who} is not done and has no messages: the policy has nothing to read")
    given = answer.HasField("score")
    if given and not answer.done:
        raise WrongAnswer(f"{who} has a score and is not done")
    if hosted is not None and given and not hosted.scores:
        raise WrongAnswer(f"{who} has a score; it registered as an environment that does not score")
    if hosted is not None and hosted.scores and (answer.done or last) and not given:
        raise WrongAnswer(f"{who} has no score; it registered as an environment that scores")
    return Reply(messages=messages, done=answer.done, score=_score(who, answer.score) if given else None)


def _messages(who: str, messages: Sequence[common_pb2.ChatMessage], *, roles: Collection[str]) -> list[Message]:
    if len(messages) > MOST_MESSAGES:
        raise WrongAnswer(f"{who} has {len(messages)} messages, at most {MOST_MESSAGES} are allowed")
    return [_message(f"{who}: message {place}", message, roles) for place, message in enumerate(messages)]


def _message(who: str, message: common_pb2.ChatMessage, roles: Collection[str]) -> Message:
    if message.role not in roles:
        raise WrongAnswer(f"{who} has role {message.role[:40]!r}, it must be one of {', '.join(roles)}")
    characters = len(message.content) + len(message.reasoning)
    characters += sum(len(call.arguments_json) for call in message.tool_calls)
    if characters > MESSAGE_CHARACTERS:
        raise WrongAnswer(f"{who} has {characters} characters, at most {MESSAGE_CHARACTERS} are allowed")
    names = [message.name, message.tool_call_id, *(call.name for call in message.tool_calls)]
    names += [call.id for call in message.tool_calls]
    if len(message.tool_calls) > MOST_MESSAGES or max(map(len, names)) > NAME_CHARACTERS:
        raise WrongAnswer(
            f"{who} has over {MOST_MESSAGES} tool calls, or a name or id of over {NAME_CHARACTERS} characters"
        )
    if message.role != "assistant" and (message.tool_calls or message.reasoning):
        raise WrongAnswer(f"{who} of role {message.role} has tool calls or reasoning, which assistants alone have")
    if message.role != "tool" and (message.tool_call_id or message.name):
        raise WrongAnswer(f"{who} of role {message.role} has a tool_call_id or name, which tools alone have")
    return message_from(message)


def _tool(who: str, tool: environment_pb2.Tool) -> Tool:
    if not tool.name.strip() or len(tool.name) > NAME_CHARACTERS:
        raise WrongAnswer(f"{who} has a name of {len(tool.name)} characters, it must have 1 to {NAME_CHARACTERS}")
    who = f"{who} ({tool.name!r})"
    if max(len(tool.description), len(tool.parameters_json)) > SCHEMA_CHARACTERS:
        raise WrongAnswer(f"{who} has over {SCHEMA_CHARACTERS} characters of description or parameters_json")
    try:
        read = tool_from(tool)
        json.dumps(read.parameters, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise WrongAnswer(
            f"{who}: parameters_json must be a JSON object, in UTF-8 and finite: {error!s:.200}"
        ) from error
    if fault := _fault_of_schema(read.parameters):
        raise WrongAnswer(f"{who}: parameters_json must be the JSON Schema of an object: {fault}")
    return read


def _fault_of_schema(schema: Any) -> str:
    """What is wrong with the schema of a tool's arguments; empty for a good one. An empty one has no arguments."""
    if schema and schema.get("type") != "object":
        return f"`type` must be 'object', got {schema.get('type')!r:.60}"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(one, dict | bool) for one in properties.values()):
        return f"`properties` must map names to schemas, got {properties!r:.60}"
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        return f"`required` must be a list of names, got {required!r:.60}"
    return ""


def _score(who: str, score: common_pb2.EpisodeScore) -> Score:
    parts = {name: score.parts[name] for name in sorted(score.parts)[:MOST_PARTS] if len(name) <= PART_CHARACTERS}
    for name, value in {"score": score.score, **{f"parts[{key!r}]": one for key, one in parts.items()}}.items():
        if not abs(value) <= LARGEST_SCORE:
            raise WrongAnswer(f"{who} has {name} {value:g}; scores must be finite and at most {LARGEST_SCORE:g}")
    if not 0 <= score.acc <= 1:
        raise WrongAnswer(f"{who} has acc {score.acc:g}, it must be within [0, 1]")
    if len(score.extracted) > TEXT_CHARACTERS:
        raise WrongAnswer(
            f"{who} has {len(score.extracted)} characters of extracted, at most {TEXT_CHARACTERS} are allowed"
        )
    return Score(score=score.score, acc=score.acc, parts=parts, extracted=score.extracted)
