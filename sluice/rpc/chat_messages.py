"""Chat messages, tools and scores of environments between `sluice.environments` and the wire. Forms are checked where a peer
answers (the coordinator's wire/episode_answers.py, the reward's servicer), not here."""

import json

from sluice.environments import Message, Score, Tool, ToolCall
from sluice.v1 import common_pb2, environment_pb2


def message_to(message: Message) -> common_pb2.ChatMessage:
    """To the wire."""
    return common_pb2.ChatMessage(
        role=message.role,
        content=message.content,
        tool_calls=[
            common_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def message_from(message: common_pb2.ChatMessage) -> Message:
    """From the wire."""
    return Message(
        role=message.role,
        content=message.content,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def score_to(score: Score) -> common_pb2.EpisodeScore:
    """To the wire; a missing `acc` is the score, cut to [0, 1]."""
    acc = min(1.0, max(0.0, score.score)) if score.acc is None else score.acc
    return common_pb2.EpisodeScore(score=score.score, acc=acc, parts=score.parts, extracted=score.extracted)


def score_from(score: common_pb2.EpisodeScore) -> Score:
    """From the wire."""
    return Score(score=score.score, acc=score.acc, parts=dict(score.parts), extracted=score.extracted)


def tool_to(tool: Tool) -> environment_pb2.Tool:
    """To the wire."""
    parameters = json.dumps(dict(tool.parameters), ensure_ascii=False) if tool.parameters else ""
    return environment_pb2.Tool(name=tool.name, description=tool.description, parameters_json=parameters)


def tool_from(tool: environment_pb2.Tool) -> Tool:
    """From the wire. Raises ValueError for parameters that are no JSON object."""
    parameters = json.loads(tool.parameters_json) if tool.parameters_json else {}
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters_json: must be a JSON object, got {tool.parameters_json[:80]}")
    return Tool(name=tool.name, description=tool.description, parameters=parameters)
