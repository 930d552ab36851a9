"""What the coordinator's core speaks of: one group on its path, the terms of its ledger.

A group is *open* (pending, in flight or scored), then *queued*, then *assigned*; it leaves by one terminal state.
Only open -> queued -> assigned -> terminal is durable (store.py); where an open group is on its way is memory.
"""

import enum
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np


class Phase(enum.Enum):
    """Where an open group is on its path."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    SCORED = "scored"


class Durable(enum.Enum):
    """The states that Redis keeps."""

    OPEN = "open"
    QUEUED = "queued"
    ASSIGNED = "assigned"


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
"""Terminal states, beside `failed:<reason>`."""


class PromptLike(Protocol):
    """What the conductor needs of a prompt."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """(lineage, number) of a set of weights."""

    lineage: str
    number: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """`version` sampled completion tokens [start, end)."""

    version: Version
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One completion as a rollout returned it, validated."""

    index: int
    token_ids: np.ndarray
    """[T] int32."""
    logprobs: np.ndarray
    """[T] float32, nats."""
    spans: tuple[Span, ...]
    finish_reason: str
    """'stop' or 'length'."""
    text: str
    rollout_id: str
    seed: int

    @property
    def oldest_version(self) -> int:
        """Number of the oldest version that sampled one of its tokens."""
        return min(span.version.number for span in self.spans)


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

    @property
    def graded(self) -> bool:
        """Whether the scores mean anything."""
        return self.status in ("ok", "unparsed")


@dataclass(kw_only=True, slots=True, eq=False)
class Group:
    """One open group on its path; mutable, owned by the conductor task that carries it."""

    group_id: str
    admission: int
    prompt: PromptLike
    cursor: str
    """Where its prompt came from, so that a restarted coordinator finds it again."""
    attempt: int = 1
    phase: Phase = Phase.PENDING
    start_version: int | None = None
    """Version of the rollout it was started on, while in flight."""
    samples: dict[int, Sample] = field(default_factory=dict)
    rewards: list[Reward] = field(default_factory=list)
    lost_tokens: int = 0
    """Completion tokens of samples that were thrown away because they could no longer be trained in time."""
    doomed: bool = False
    """Its batch was assigned without it: it will be dropped when it arrives."""

    @property
    def oldest_version(self) -> int | None:
        """Oldest version among its samples, None before the first."""
        return min((sample.oldest_version for sample in self.samples.values()), default=None)

    @property
    def response_tokens(self) -> int:
        """Completion tokens of the samples it has."""
        return sum(len(sample.token_ids) for sample in self.samples.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedGroup:
    """An accepted group waiting for its step; the payload stays in Redis."""

    group_id: str
    admission: int
    oldest_version: int
    tokens: int
    payload_bytes: int
    prompt_id: str
    attempt: int
    shaped_mean: float


class GroupFailed(Exception):
    """This group cannot go on; `reason` is its ledger term after `failed:`."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
