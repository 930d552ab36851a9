"""What the coordinator's core speaks of: one group on its path, the terms of its ledger.

A group is *open* (pending, in flight or scored), then *queued*, then *assigned*; it leaves by one terminal state.
Only open -> queued -> assigned -> terminal is durable (redis_store.py); where an open group is on its way is memory.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sluice.policy_version import PolicyVersion


class Phase(enum.Enum):
    """Where an open group is on its path."""

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
class Span:
    """`version` sampled completion tokens [start, end)."""

    version: PolicyVersion
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
    parts: Mapping[str, float] = field(default_factory=dict)
    """Scores of the graders where there are several, and the components they name."""

    @property
    def graded(self) -> bool:
        """Whether the scores mean anything."""
        return self.status in ("ok", "unparsed")


@dataclass(kw_only=True, slots=True)
class Attempt:
    """One request for samples of a group, or a coordinator's restart, which loses what was under way (`number` 0)."""

    number: int
    rollout: str
    version: int
    """Number the rollout held when it was asked."""
    asked: int
    """Samples asked for: those the group did not have."""
    started_s: float
    """Unix time."""
    ended_s: float = -1.0
    """-1 while it is under way."""
    samples: int = 0
    """Samples received and believed."""
    tokens: int = 0
    """Completion tokens received, those of refused samples included."""
    fault: str = ""
    """Why it was not the last one; empty when the group was complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """When and where a group came in."""

    time_s: float
    """Unix time."""
    rank: int
    """Live groups admitted before it."""
    next_step: int
    """The batch to be assigned next, then."""
    epoch: int
    """Of its prompt; -1 when a user submitted it."""
    row: int
    """Of its prompt in the data, or in what users submitted; 0-based."""


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
    grader: str = ""
    """The reward that has it now."""
    lost_tokens: int = 0
    """Completion tokens thrown away: samples that could no longer be trained in time, or that were refused."""
    admitted: Admission | None = None
    """None for one that was admitted before this was kept."""
    attempts: list[Attempt] = field(default_factory=list)
    fault: str = ""
    """Why it failed."""
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

    def drop_ungraded(self) -> None:
        """What could not be graded is not trained; its tokens are lost."""
        graded = [
            (index, reward) for index, reward in zip(sorted(self.samples), self.rewards, strict=True) if reward.graded
        ]
        before = self.response_tokens
        self.samples = {index: self.samples[index] for index, _ in graded}
        self.rewards = [reward for _, reward in graded]
        self.lost_tokens += before - self.response_tokens


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
    life: Mapping[str, Any] = field(default_factory=dict)
    """Its ledger row as far as it is written (ledger_row.py)."""


def group_id_of(admission: int, *, run_id: str) -> str:
    """The id of the group that is admitted as number `admission`."""
    return f"{run_id}-{admission:07d}"


def admission_of(group_id: str, *, run_id: str) -> int | None:
    """The inverse of `group_id_of`, None for an id of another run."""
    number = group_id.removeprefix(f"{run_id}-")
    ours = number != group_id and number.isascii() and number.isdigit() and group_id_of(int(number), run_id=run_id)
    return int(number) if ours == group_id else None


class GroupFailed(Exception):
    """This group cannot go on; `reason` is its ledger term after `failed:`, `fault` the error behind it."""

    def __init__(self, *, reason: str, fault: str) -> None:
        super().__init__(f"{reason}: {fault}")
        self.reason, self.fault = reason, fault
