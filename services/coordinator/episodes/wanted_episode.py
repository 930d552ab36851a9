"""What one episode is played for: the row, and the prompt that the environment's opening makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.coordinator.state.group import ChatTurn, GroupFailed, PromptLike
from sluice.config.schema import Config

LEASE_S = 60.0
"""What a lease has beyond the limit of one answer. Chosen: a coordinator that is killed blocks places for two minutes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedPrompt:
    """A row with other ids: those of the opened chat, or those that a turn follows."""

    of: PromptLike
    token_ids: np.ndarray
    """[P] int32."""
    text: str

    @property
    def prompt_id(self) -> str:
        """The row's."""
        return self.of.prompt_id

    @property
    def data_source(self) -> str:
        """The row's."""
        return self.of.data_source

    @property
    def ground_truth(self) -> str:
        """The row's."""
        return self.of.ground_truth

    @property
    def extra_info_json(self) -> str:
        """The row's."""
        return self.of.extra_info_json

    @property
    def environment(self) -> str:
        """The row's."""
        return self.of.environment

    @property
    def environment_args_json(self) -> str:
        """The row's."""
        return self.of.environment_args_json

    @property
    def messages(self) -> Sequence[ChatTurn]:
        """The row's chat."""
        return self.of.messages


def must_begin_alike(first: OpenedPrompt, other: OpenedPrompt) -> None:
    """Raises GroupFailed where two episodes of one row have begun with different chats."""
    if first.token_ids.tobytes() == other.token_ids.tobytes():
        return
    ours, theirs = first.text, other.text
    at = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
    raise GroupFailed(
        reason="environment_differs",
        fault=f"environment {other.environment!r} opened one seed with two chats, {ours[at : at + 40]!r} and "
        f"{theirs[at : at + 40]!r} at character {at}: a group is one prompt; draw with the row's seed alone",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One episode that is wanted."""

    name: str
    """Begins the episode's ids."""
    index: int
    prompt: PromptLike
    seed: int
    """The environment's; the same for all episodes of a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one episode."""

    turns: int
    prompt_tokens: int
    sampled_tokens: int
    episode_tokens: int
    answer_s: float
    """Of one answer of the environment."""
    lease_s: float
    push_back_s: float
    """How long an environment may push back."""

    @classmethod
    def of(cls, config: Config) -> "Limits":
        """The limits of a run's recipe."""
        return cls(
            turns=config.rollout.max_turns,
            prompt_tokens=config.data.max_prompt_length,
            sampled_tokens=config.data.max_response_length,
            episode_tokens=config.longest_sequence,
            answer_s=config.rollout.turn_timeout_s,
            lease_s=config.rollout.turn_timeout_s + LEASE_S,
            push_back_s=config.coordinator.score_wait_s,
        )

    def room(self, *, context: int, sampled: int) -> int:
        """Tokens that the next turn may have after so many of context, and so many sampled ones in all turns before."""
        return min(self.sampled_tokens - sampled, self.episode_tokens - context)
