"""The core's view of the outside. Adapters: wire/clients.py and wire/messages.py (gRPC), storage/redis_store.py (Redis)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.coordinator.state.group import Group, PromptLike, QueuedGroup, Reward, Sample
from services.coordinator.state.member import Member
from sluice.environments import Message, Opening, Reply
from sluice.errors import SluiceError, Unavailable
from sluice.policy_version import PolicyVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn; neutral but for the temperature, and for `top_p` in evaluations."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    evaluation: bool = False
    """Whether the samples measure the policy and are never trained; only then may `top_p` be below 1."""

    def __post_init__(self) -> None:
        assert self.evaluation or self.top_p == 1.0, "training draws from the whole distribution"


class WrongAnswer(SluiceError):
    """A member's answer breaks the contract: a failed attempt of the member, of which only the number of tokens is recorded."""

    def __init__(self, reason: str, *, tokens: int = 0) -> None:
        super().__init__(reason)
        self.tokens = tokens
        """Completion tokens in the answer."""


class TooLarge(SluiceError):
    """A request over the limit of every server: it is not sent, and no member is to blame."""


class RolloutClient(Protocol):
    """Calls one rollout."""

    def generate(
        self,
        member: Member,
        *,
        request_id: str,
        prompt: PromptLike,
        seeds: Mapping[int, int],
        sampling: Sampling,
        timeout_s: float,
        required_version: PolicyVersion | None = None,
    ) -> AsyncIterator[Sample]:
        """Yields one sample per entry of `seeds` (index -> seed), each when it finishes. Raises SluiceError,
        WrongAnswer for a sample that breaks the contract."""
        ...


class RewardClient(Protocol):
    """Calls one reward service."""

    async def score(
        self, member: Member, *, group_id: str, prompt: PromptLike, samples: Sequence[Sample], timeout_s: float
    ) -> list[Reward]:
        """Grades the samples, in order. Raises SluiceError, WrongAnswer for grades that break the contract."""
        ...


class EnvironmentClient(Protocol):
    """Calls one server of environments. Each method raises SluiceError: WrongAnswer for what breaks the contract, Overloaded
    for back-pressure, NotFound for an episode that is not open there."""

    async def open(
        self,
        member: Member,
        *,
        episode_id: str,
        prompt: PromptLike,
        seed: int,
        lease_s: float,
        max_turns: int,
        timeout_s: float,
    ) -> Opening:
        """Begins an episode, or repeats how a running one began."""
        ...

    async def step(
        self,
        member: Member,
        *,
        episode_id: str,
        environment: str,
        turn: int,
        message: Message,
        finish_reason: str,
        last: bool,
        timeout_s: float,
    ) -> Reply:
        """What the environment answers to a turn, or repeats the answer."""
        ...

    async def close(self, member: Member, *, episode_id: str, timeout_s: float) -> None:
        """Ends an episode; one that is not open is no error."""
        ...


class GroupCodec(Protocol):
    """Groups as bytes for the queue and the batch files, and facts read from these bytes (wire/messages.py)."""

    def encode(self, group: Group) -> bytes:
        """A compressed, self-contained group. Raises GroupFailed for a group that is too large for a message to a learner."""
        ...

    def accepted(self, payload: bytes) -> QueuedGroup:
        """The facts of a group in a batch file, which are all but its admission and its attempts."""
        ...

    def newest_version(self, payload: bytes) -> int:
        """The number of the newest version that sampled a token of the group."""
        ...

    def to_read(self, payload: bytes) -> dict[str, Any]:
        """The group's id, prompt, completions and scores, for people: a line of samples.jsonl."""
        ...


class Prompts(Protocol):
    """The order of prompts; a pure function of seed and epoch."""

    def next(self, cursor: str) -> tuple[PromptLike, str]:
        """The prompt at `cursor`, and the cursor of the next prompt."""
        ...

    def again(self, cursor: str, *, submitted: bool) -> PromptLike:
        """The prompt of a group that was admitted at `cursor`, as it was then."""
        ...

    def origin(self, cursor: str, after: str) -> tuple[int, int]:
        """(epoch, row) of the prompt between two cursors, both 0-based; epoch -1 stands for submitted prompts."""
        ...


class Sampler(Protocol):
    """Chooses prompts of the data by what is known of them; without one they come in their order."""

    def choose(self, cursor: str) -> str:
        """The cursor of the next group's prompt: `cursor`, or one further on."""
        ...

    def in_turn(self, epoch: int, row: int) -> bool:
        """Whether a row is taken in this epoch whatever is known of it."""
        ...

    def admitted(self, row: int) -> float:
        """Notes which row the group has; returns the expected chance of a signal."""
        ...

    def ended(self, group: Group) -> None:
        """Takes the outcome of a group that was graded, or that has failed."""
        ...

    def metrics(self, cursor: str) -> dict[str, float]:
        """The catalogue's metrics of the draws."""
        ...


class Forgot(Unavailable):
    """Redis is back without writes that it had confirmed, so this coordinator's memory is ahead and must not be used."""


class DurableState(Protocol):
    """The state that survives the coordinator (redis_store.py): transitions, records of batches and commits, rows, meta."""

    rows_written: int
    """Rows that this process has written, also rows that are in files by now."""

    async def admit(self, infos: Mapping[str, Mapping[str, Any]], *, cursor: str, admissions: int) -> None: ...
    async def accept(
        self, group_id: str, *, info: Mapping[str, Any], payload: bytes, tokens: int, lost: int
    ) -> bool: ...
    async def end(
        self, group_id: str, *, was: str, term: str, row: Mapping[str, Any], tokens: int, lost: int = 0
    ) -> bool: ...
    async def payload(self, group_id: str) -> bytes | None: ...
    async def payloads(self, group_ids: Sequence[str]) -> list[bytes | None]: ...
    async def assign(
        self, step: int, *, record: Mapping[str, Any], group_ids: Sequence[str], tokens: int
    ) -> dict[str, Any]: ...
    async def record(self, kind: str, step: int) -> dict[str, Any] | None: ...
    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]: ...
    async def drop_rows(self, before: int, count: int) -> None: ...
    async def drop_records(self, before: int) -> None: ...
    async def confirm(self) -> None: ...
    async def commit(
        self, step: int, *, record: Mapping[str, Any], tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]: ...
    async def set_aside(
        self, step: int, *, digest: str, term: str, tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> bool: ...
    async def restore_batch(
        self, step: int, *, record: Mapping[str, Any], groups: Sequence[tuple[str, Mapping[str, Any], int]]
    ) -> None: ...
    async def rows_in_files(self) -> int: ...
    async def rebook(self, before: int, rows: Sequence[Mapping[str, Any]]) -> int: ...
    async def counters(self) -> dict[str, int]: ...
    async def meta(self) -> dict[str, str]: ...
    async def set_meta(self, values: Mapping[str, str]) -> None: ...
    async def roll_back(
        self,
        number: int,
        *,
        to: int,
        trained: int,
        trained_tokens: int,
        meta: Mapping[str, str],
        live: Sequence[tuple[Mapping[str, Any], int, int]],
    ) -> None: ...
    async def forget(self, number: int, *, rollbacks: str) -> None: ...
