"""What an agent asks for and what it is told: requests for a turn, the turn, the end of an episode, refusals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.coordinator.state.group import Sample
from sluice.environments import Message, Score, Tool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ask:
    """A request for the policy's next turn: a chat that is rendered here, or token ids as they are."""

    fingerprint: bytes
    """Equal for requests with the same path and body."""
    messages: Sequence[Message] = ()
    tools: Sequence[Tool] = ()
    token_ids: np.ndarray | None = None
    """[C] int32, in place of messages."""
    max_tokens: int | None = None
    """Most tokens of the turn; None: what the budgets leave."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Said:
    """The policy's turn."""

    turn: int
    """0-based."""
    context: np.ndarray
    """[C] int32: what the policy read."""
    sample: Sample
    message: Message
    """As the chat's form reads the turn, with an id for every call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """The agent's last word: a score where the environment scores, or why it gave up."""

    score: Score | None = None
    error: str = ""


class Refused(Exception):
    """A request that is not served; the episode goes on. `code` is one of OpenAI's, or one of the gateway's own."""

    def __init__(self, status: int, code: str, message: str, *, param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


CONTEXT_LENGTH = "context_length_exceeded"
EPISODE_OVER = "episode_over"
UNDER_WAY = "request_under_way"
