"""Answers of environments that break the contract are refused by name, and good ones are taken."""

from collections.abc import Callable
from typing import Any

import pytest

from services.coordinator.state.member import EnvironmentInfo
from services.coordinator.state.ports import WrongAnswer
from services.coordinator.wire.episode_answers import opening_of, reply_of
from sluice.v1 import common_pb2 as pb
from sluice.v1 import environment_pb2

SCORES, PLAIN = EnvironmentInfo(version="1", scores=True), EnvironmentInfo(version="1", scores=False)


def says(**fields: Any) -> pb.ChatMessage:
    given: dict[str, Any] = {"role": "user", "content": "x"} | fields
    return pb.ChatMessage(**given)


def opened(*messages: pb.ChatMessage, tools: list[Any] | None = None, version: str = "1") -> Callable[[], object]:
    named = [environment_pb2.Tool(**tool) for tool in tools or []]
    return lambda: opening_of("env", environment_pb2.OpenResponse(messages=messages, tools=named, version=version))


def stepped(hosted: EnvironmentInfo, last: bool = False, **fields: Any) -> Callable[[], object]:
    return lambda: reply_of("env", environment_pb2.StepResponse(**fields), hosted=hosted, last=last)


def schema(text: str) -> Callable[[], object]:
    return opened(tools=[{"name": "f", "parameters_json": text}])


SCORE = pb.EpisodeScore(score=1, acc=1)
CALL = pb.ToolCall(name="f", arguments_json="{}")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (opened(says(role="robot")), "role 'robot'"),
        (opened(*[says()] * 65), "65 messages"),
        (opened(says(content="x" * (1 << 20) + "y")), "1048577 characters"),
        (opened(says(tool_calls=[CALL])), "assistants alone"),
        (opened(says(name="f")), "tools alone"),
        (opened(says(role="tool", name="f" * 201)), "over 200 characters"),
        (opened(version="1" * 201), "201 characters of version"),
        (opened(tools=[{"name": "f"}, {"name": "f"}]), "two tools of the name 'f'"),
        (opened(tools=[{"name": " "}]), "a name of 1 characters"),
        (opened(tools=[{"name": f"f{place}"} for place in range(129)]), "129 tools"),
        (schema("[1]"), "must be a JSON object"),
        (schema("{"), "must be a JSON object"),
        (schema("[" * 60_000), "must be a JSON object"),
        (schema('{"type": "object", "title": "\\ud800"}'), "in UTF-8"),
        (schema('{"type": "object", "maximum": NaN}'), "finite"),
        (schema('{"type": "string"}'), "must be 'object'"),
        (schema('{"type": "object", "properties": [1]}'), "`properties`"),
        (schema('{"type": "object", "required": "x"}'), "`required`"),
        (stepped(PLAIN), "the policy has nothing to read"),
        (stepped(PLAIN, messages=[says(role="assistant")]), "role 'assistant'"),
        (stepped(SCORES, messages=[says()], score=SCORE), "is not done"),
        (stepped(PLAIN, done=True, score=SCORE), "does not score"),
        (stepped(SCORES, done=True), "has no score"),
        (stepped(SCORES, last=True, messages=[says()]), "has no score"),
        (stepped(SCORES, done=True, score=pb.EpisodeScore(score=float("nan"))), "finite"),
        (stepped(SCORES, done=True, score=pb.EpisodeScore(score=1, acc=2)), r"within \[0, 1\]"),
        (stepped(SCORES, done=True, score=pb.EpisodeScore(parts={"a": float("inf")})), r"parts\['a'\]"),
        (stepped(SCORES, done=True, score=pb.EpisodeScore(extracted="x" * 16_385)), "16385 characters"),
    ],
)
def test_a_wrong_answer_is_refused_by_name(answer: Callable[[], object], fault: str) -> None:
    with pytest.raises(WrongAnswer, match=f"^env.*{fault}"):
        answer()


def test_good_answers_are_taken_whole() -> None:
    opening = opening_of(
        "env",
        environment_pb2.OpenResponse(
            messages=[
                says(role="system"),
                says(role="assistant", tool_calls=[CALL], reasoning="hm"),
                says(role="tool", name="f"),
            ],
            tools=[
                environment_pb2.Tool(name="f"),
                environment_pb2.Tool(
                    name="g", parameters_json='{"type": "object", "properties": {"a": {}}, "required": ["a"]}'
                ),
            ],
        ),
    )
    assert [message.role for message in opening.messages] == ["system", "assistant", "tool"]
    assert opening.messages[1].tool_calls[0].name == "f"
    assert not opening.tools[0].parameters
    reply = reply_of("env", environment_pb2.StepResponse(done=True, score=SCORE), hosted=SCORES, last=False)
    assert reply.score is not None
    assert (reply.done, reply.score.score, reply.score.acc) == (True, 1, 1)
    assert not reply_of("env", environment_pb2.StepResponse(), hosted=PLAIN, last=True).messages
