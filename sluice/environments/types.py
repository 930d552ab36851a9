"""The types between policy and environment: messages, tools, rows, replies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call of a tool, as the policy wrote it."""

    name: str
    arguments_json: str
    """A JSON object, or other text: policies write anything."""
    id: str = ""
    """By which the tool's answer names the call; empty where the model's template has no ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    """system, user, assistant or tool."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant alone."""
    tool_call_id: str = ""
    """Of a tool alone: the call that is answered."""
    name: str = ""
    """Of a tool alone: the tool's name."""
    reasoning: str = ""
    """Of an assistant alone: its reasoning, where the model's template sets it apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool that the policy may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the arguments, an object; empty: no arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The prompt of an episode, and what graders get of it."""

    messages: tuple[Message, ...]
    data_source: str
    ground_truth: str
    extra_info: Mapping[str, object]
    arguments: Mapping[str, object]
    """The row's env_args."""
    seed: int
    """The same for all episodes of a group, whose first messages must be the same."""
    max_turns: int
    """Turns that the policy has at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """How an episode begins."""

    messages: Sequence[Message] = ()
    """Empty: the row's chat."""
    tools: Sequence[Tool] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The environment's verdict on a whole episode."""

    score: float
    acc: float | None = None
    """1 when the task is solved, else 0; None: the score, cut to [0, 1]."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components, for people and metrics."""
    extracted: str = ""
    """The answer that was found, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What an environment answers to a turn."""

    messages: Sequence[Message] = ()
    """Roles tool and user; may be empty only when done."""
    done: bool = False
    score: Score | None = None
    """With `done` alone."""
