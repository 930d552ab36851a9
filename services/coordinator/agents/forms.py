"""The bodies of requests, checked: JSON as OpenAI's clients and vLLM's write it, into what an agent asks for.

Fields that change no token (`user`, `seed`, `store`, ...) are ignored.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from services.coordinator.agents.asking import Ask, Ended, Refused
from services.coordinator.agents.sampling_rules import check_sampling
from sluice.environments import Message, Score, Tool, ToolCall
from sluice.limits import (
    LARGEST_SCORE,
    MOST_PARTS,
    NAME_CHARACTERS,
    PART_CHARACTERS,
    SCHEMA_CHARACTERS,
    TEXT_CHARACTERS,
)

MOST_MESSAGES: Final = 1_024
MOST_TOOLS: Final = 128
"""OpenAI's API takes as many."""
MOST_CALLS: Final = 64
LONGEST_WAIT_S: Final = 60.0
"""How long one request may wait for an episode."""

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_Name = Annotated[str, StringConstraints(max_length=NAME_CHARACTERS)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Part(_Form):
    type: Literal["text"]
    text: str


class _Function(_Form):
    name: _Name
    arguments: str = ""


class _Call(_Form):
    id: _Name = ""
    function: _Function


class _Message(_Form):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = Field(default=None, max_length=MOST_CALLS)
    tool_call_id: _Name | None = None
    name: _Name | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    def message(self) -> Message:
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        if self.role == "assistant":
            calls = [
                ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
                for call in self.tool_calls or ()
            ]
            thought = self.reasoning_content or self.reasoning or ""
            return Message(role="assistant", content=text, tool_calls=tuple(calls), reasoning=thought)
        if self.role == "tool":
            return Message(role="tool", content=text, tool_call_id=self.tool_call_id or "", name=self.name or "")
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class _ToolFunction(_Form):
    name: Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(_Form):
    type: Literal["function"]
    function: _ToolFunction


_Tokens = Annotated[int, Field(ge=1)]


class _Chat(_Form):
    messages: list[_Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    tools: list[_Tool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: str | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None


class _Sampling(_Form):
    max_tokens: _Tokens | None = None


class _Generate(_Form):
    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(min_length=1)
    sampling_params: _Sampling = _Sampling()


class Take(_Form):
    """POST /v1/episodes."""

    environment: str = ""
    wait_s: float = Field(default=30.0, ge=0, le=LONGEST_WAIT_S)


class _Finish(_Form):
    score: float | None = Field(default=None, ge=-LARGEST_SCORE, le=LARGEST_SCORE)
    acc: float | None = Field(default=None, ge=0, le=1)
    parts: dict[
        Annotated[str, StringConstraints(max_length=PART_CHARACTERS)],
        Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)],
    ] = Field(default_factory=dict, max_length=MOST_PARTS)
    extracted: str = Field(default="", max_length=TEXT_CHARACTERS)
    error: str = Field(default="", max_length=TEXT_CHARACTERS)


def read_json(body: bytes) -> dict[str, Any]:
    """An object. Raises Refused."""
    try:
        # Of bytes the reader takes surrogates too, and UTF-16, in which an escape is no such bytes.
        tree = json.loads(body.decode() or "{}", parse_constant=_refuse_constant)
        if _ESCAPED_SURROGATE.search(body):  # half of a pair is no text, and nothing after this could write it
            json.dumps(tree, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(400, "invalid_json", f"the body must be a JSON object: {error!s:.200}") from error
    if not isinstance(tree, dict):
        raise Refused(400, "invalid_json", f"the body must be a JSON object, got {type(tree).__name__}")
    return tree


def chat_ask(tree: dict[str, Any], *, temperature: float, body: bytes) -> Ask:
    """POST /v1/chat/completions. Raises Refused."""
    check_sampling(tree, temperature=temperature)
    read = _read(_Chat, tree)
    tools = [
        Tool(
            name=one.function.name, description=one.function.description or "", parameters=one.function.parameters or {}
        )
        for one in read.tools or ()
    ]
    if long := next((one.name for one in tools if _characters(one) > SCHEMA_CHARACTERS), None):
        raise Refused(
            400,
            "invalid_value",
            f"tools: {long!r} has over {SCHEMA_CHARACTERS} characters of description or parameters",
            param="tools",
        )
    if twice := {one.name for one in tools if sum(other.name == one.name for other in tools) > 1}:
        raise Refused(400, "invalid_value", f"tools: two have the name {min(twice)!r}", param="tools")
    return Ask(
        fingerprint=_fingerprint(b"chat", body),
        messages=[message.message() for message in read.messages],
        tools=() if read.tool_choice == "none" else tools,
        max_tokens=read.max_completion_tokens or read.max_tokens,
    )


def generate_ask(tree: dict[str, Any], *, temperature: float, vocabulary: int, body: bytes) -> Ask:
    """POST /inference/v1/generate. Raises Refused."""
    check_sampling(tree, temperature=temperature)
    sampling = tree.get("sampling_params")
    check_sampling(sampling if isinstance(sampling, dict) else {}, temperature=temperature)
    read = _read(_Generate, tree)
    ids = np.asarray(read.token_ids, np.int32)
    if (largest := int(ids.max())) >= vocabulary:
        message = f"token_ids: must be 0 to {vocabulary - 1}, the ids of the model, got {largest}"
        raise Refused(400, "invalid_value", message, param="token_ids")
    return Ask(fingerprint=_fingerprint(b"generate", body), token_ids=ids, max_tokens=read.sampling_params.max_tokens)


def take_of(tree: dict[str, Any]) -> Take:
    """POST /v1/episodes. Raises Refused."""
    return _read(Take, tree)


def ended_of(tree: dict[str, Any], *, scores: bool) -> Ended:
    """POST /v1/episodes/finish; `scores`: whether a score is wanted. Raises Refused."""
    read = _read(_Finish, tree)
    if read.error:
        return Ended(error=" ".join(read.error.split())[:500])
    if scores and read.score is None:
        raise Refused(400, "invalid_value", "score: must be a number, or error a text", param="score")
    if not scores and read.score is not None:
        message = (
            "score: a grader scores this environment; set environments.NAME.settings.scores: true, or leave it out"
        )
        raise Refused(400, "invalid_value", message, param="score")
    if read.score is None:
        return Ended()
    acc = min(1.0, max(0.0, read.score)) if read.acc is None else read.acc
    return Ended(score=Score(score=read.score, acc=acc, parts=read.parts, extracted=read.extracted))


def _characters(tool: Tool) -> int:
    """Of its description or its schema, whichever is longer."""
    return max(len(tool.description), len(json.dumps(tool.parameters)))


_F = TypeVar("_F", bound=_Form)


def _read(form: type[_F], tree: dict[str, Any]) -> _F:
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "body"
        raise Refused(400, "invalid_value", f"{where}: {first['msg']}", param=where) from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _fingerprint(kind: bytes, body: bytes) -> bytes:
    return hashlib.sha256(kind + b"\0" + body).digest()
