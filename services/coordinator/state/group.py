"""The types of the coordinator's core: one group on its path, and the terms of the ledger.

A group is *open* (pending, in flight or scored), then *queued*, then *assigned*, and ends in one terminal state. Only
open -> queued -> assigned -> terminal is durable (redis_store.py); the phase of an open group is memory.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sluice.environments import Message, Score
from sluice.policy_version import PolicyVersion


class Phase(enum.Enum):
    """The place of an open group on its path."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    SCORED = "scored"


TERMINAL = (
    "trained",
    "filtered_all_right",
    "filtered_all_wrong",
    "filtered_other",
    "stale",
    "surplus",
    "rollback",
    "abandoned",
)
"""The terminal states apart from `failed:<reason>`."""


class ChatTurn(Protocol):
    """A message of a row's chat."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


class PromptLike(Protocol):
    """The facts of a prompt that the conductor needs."""

    @property
    def prompt_id(self) -> str: ...
    @property
    def data_source(self) -> str: ...
    @property
    def token_ids(self) -> np.ndarray: ...
    @property
    def text(self) -> str: ...
    @property
    def ground_truth(self) -> str: ...
    @property
    def extra_info_json(self) -> str: ...
    @property
    def environment(self) -> str: ...
    @property
    def environment_args_json(self) -> str: ...
    @property
    def messages(self) -> Sequence[ChatTurn]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """`version` sampled completion tokens [start, end)."""

    version: PolicyVersion
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What the policy sampled in one go in an episode: completion tokens [start, end)."""

    start: int
    end: int
    finish_reason: str
    """'stop' or 'length'."""
    rollout_id: str
    seed: int
    text: str
    tools: tuple[str, ...] = ()
    """Names of the tools that the turn called."""
    answers: tuple[Message, ...] = ()
    """What the environment answered."""
    generated_s: float = 0.0
    answered_s: float = 0.0
    context: np.ndarray | None = None
    """[C] int32: the prompt of the training sequence that begins with this turn; None: the turn continues the former one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion of a rollout, validated; or one episode, whose facts are the last turn's where it has several."""

    index: int
    token_ids: np.ndarray
    """[T] int32."""
    logprobs: np.ndarray
    """[T] float32, nats; 0 for observed tokens."""
    spans: tuple[Span, ...]
    """Of the sampled tokens."""
    finish_reason: str
    """'stop' or 'length'."""
    text: str
    rollout_id: str
    seed: int
    turns: tuple[Turn, ...] = ()
    """Empty for a single answer, all of whose tokens are sampled."""
    score: Score | None = None
    """The environment's verdict; None where a grader scores."""
    environment_version: str = ""
    """Which version of the environment's code gave it; kept until the samples are scored."""

    @property
    def sampled_tokens(self) -> int:
        """How many tokens the policy sampled; the others were observed."""
        return sum(turn.end - turn.start for turn in self.turns) if self.turns else len(self.token_ids)

    @property
    def calls_tools(self) -> bool:
        """Whether it is an episode in which the policy called a tool."""
        return any(turn.tools for turn in self.turns)

    @property
    def oldest_version(self) -> int:
        """Number of the oldest version that sampled a token of the completion."""
        spans = self.spans  # one, unless weights came meanwhile
        return spans[0].version.number if len(spans) == 1 else min(span.version.number for span in spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """The grader's verdict on one sample."""

    status: str
    """'ok', 'unparsed', 'timeout' or 'error'."""
    raw_score: float
    acc: float
    extracted: str
    shaped_reward: float
    overlong_penalty: float
    grader: str
    grader_version: str
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Scores of the graders where a route has several, and the graders' named components."""

    @property
    def graded(self) -> bool:
        """Whether the scores mean anything."""
        return self.status in ("ok", "unparsed")


@dataclass(kw_only=True, slots=True)
class Attempt:
    """One request for samples of a group; with `number` 0 a coordinator's restart, which loses the samples under way."""

    number: int
    rollout: str
    version: int
    """Number of the rollout's version at the time of the request."""
    asked: int
    """Samples asked for: the group's missing samples."""
    started_s: float
    """Unix time."""
    ended_s: float = -1.0
    """Unix time; -1 while the request is under way."""
    samples: int = 0
    """Samples received and accepted."""
    tokens: int = 0
    """Completion tokens received, also of refused samples."""
    fault: str = ""
    """Why another attempt followed; empty when the group was complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """The circumstances of a group's admission."""

    time_s: float
    """Unix time."""
    rank: int
    """Live groups admitted before the group."""
    next_step: int
    """The batch to be assigned next at that time."""
    epoch: int
    """The prompt's epoch; -1 for a submitted prompt."""
    row: int
    """The prompt's row in the data, or among the submitted prompts; 0-based."""
    predicted: float = -1.0
    """The chance of a signal that `data.sampler: difficulty` expected; -1 for other prompts."""
    chosen: bool = False
    """Whether that sampler took the row for its chance, and not in its turn."""


@dataclass(kw_only=True, slots=True, eq=False)
class Group:
    """One open group on its path; mutable, owned by the conductor task that carries the group."""

    group_id: str
    admission: int
    prompt: PromptLike
    cursor: str
    """The position of the group's prompt, so that a restarted coordinator finds the prompt again."""
    cursor_after: str = ""
    """The position of the next prompt; empty for a group that was admitted by an earlier process."""
    attempt: int = 1
    phase: Phase = Phase.PENDING
    start_version: int | None = None
    """Version of the rollout on which the group was started, while the group is in flight."""
    samples: dict[int, Sample] = field(default_factory=dict)
    rewards: list[Reward] = field(default_factory=list)
    grader: str = ""
    """The reward service that grades the group now."""
    lost_tokens: int = 0
    """Completion tokens of samples and turns thrown away: they could not be trained in time, were refused, or their episode
    began again."""
    admitted: Admission | None = None
    """None for a group that an older version of Sluice admitted."""
    attempts: list[Attempt] = field(default_factory=list)
    fault: str = ""
    """Why the group failed."""
    trace_id: str = ""
    """The id of the group's trace (group_trace.py); empty for a group that is not traced."""
    grading_s: float = -1.0
    """When the grading began, Unix time; -1 before."""
    graded_s: float = -1.0
    """When the grades were there; -1 before."""
    doomed: bool = False
    """Whether a batch was assigned that the group was too late for; the group is dropped on arrival."""

    @property
    def oldest_version(self) -> int | None:
        """Oldest version among the group's samples; None before the first sample."""
        return min((sample.oldest_version for sample in self.samples.values()), default=None)

    @property
    def response_tokens(self) -> int:
        """Sampled tokens of the group's samples."""
        return sum(sample.sampled_tokens for sample in self.samples.values())

    def drop_ungraded(self) -> None:
        """Drops samples that could not be graded; their tokens are lost."""
        if all(reward.graded for reward in self.rewards):
            return
        graded = [
            (index, reward) for index, reward in zip(sorted(self.samples), self.rewards, strict=True) if reward.graded
        ]
        before = self.response_tokens
        self.samples = {index: self.samples[index] for index, _ in graded}
        self.rewards = [reward for _, reward in graded]
        self.lost_tokens += before - self.response_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedGroup:
    """An accepted group that waits for its step; the payload stays in Redis."""

    group_id: str
    admission: int
    oldest_version: int
    tokens: int
    payload_bytes: int
    prompt_id: str
    attempt: int
    shaped_mean: float
    doomed: bool = False
    """Whether a batch went without the group, while the group was in flight, that should have waited."""
    life: Mapping[str, Any] = field(default_factory=dict)
    """The group's ledger row with the columns known so far (ledger_row.py)."""


def group_id_of(admission: int, *, run_id: str) -> str:
    """The id of the group that is admitted as number `admission`."""
    return f"{run_id}-{admission:07d}"


def admission_of(group_id: str, *, run_id: str) -> int | None:
    """The inverse of `group_id_of`; None for an id of another run."""
    number = group_id.removeprefix(f"{run_id}-")
    ours = number != group_id and number.isascii() and number.isdigit() and group_id_of(int(number), run_id=run_id)
    return int(number) if ours == group_id else None


class GroupFailed(Exception):
    """A group cannot go on; `reason` is the ledger term after `failed:`, `fault` is the error behind the failure."""

    def __init__(self, *, reason: str, fault: str) -> None:
        super().__init__(f"{reason}: {fault}")
        self.reason, self.fault = reason, fault
