"""One step's groups as the learner sees them: token ids, facts of sampling, rewards. No text, no wire types.

Refuses a batch that could not be trained correctly. Masks come from lengths, never from token values, so that a padding id
that equals the end token cannot hide an end token.

Letters: P prompt tokens, T completion tokens of one sequence, S sequences of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sluice.dapo.advantage import group_advantages


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSequence:
    """One sample with its prompt. Raises ValueError when its parts contradict each other."""

    token_ids: np.ndarray
    """int32[P + T]: prompt, then completion (end token included)."""
    prompt_tokens: int
    """P >= 1: the first completion token needs a token that predicts it."""
    rollout_logprobs: np.ndarray
    """float32[T], nats: log-probabilities of the completion tokens under the distribution that the tokens come from."""
    versions: np.ndarray
    """int32[T]: number of the version that sampled each completion token."""
    reward: float
    """The shaped reward."""
    truncated: bool
    """Cut at the longest completion instead of ending by itself."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"prompt: must have at least one token, got {self.prompt_tokens}")
        if self.completion_tokens < 1:
            raise ValueError(f"completion: must have at least one token, got {self.completion_tokens}")
        for name, values in (("rollout_logprobs", self.rollout_logprobs), ("versions", self.versions)):
            if values.shape != (self.completion_tokens,):
                raise ValueError(
                    f"{name}: must have one value a completion token ({self.completion_tokens}), got {values.shape}"
                )
        if not np.isfinite(self.reward):
            raise ValueError(f"reward: must be finite, got {self.reward}")

    @property
    def completion_tokens(self) -> int:
        """T."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def input_tokens(self) -> int:
        """P + T - 1: the tokens that the model reads; the last token predicts nothing."""
        return len(self.token_ids) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainGroup:
    """The samples of one prompt."""

    group_id: str
    sequences: tuple[TrainSequence, ...]

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ValueError(f"group {self.group_id}: has no samples")
        first = self.sequences[0]
        prompt = first.token_ids[: first.prompt_tokens]
        if any(not np.array_equal(s.token_ids[: s.prompt_tokens], prompt) for s in self.sequences):
            raise ValueError(f"group {self.group_id}: its samples have different prompts; a group is one prompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The groups of step `step`."""

    step: int
    digest: str
    """blake3 of the stored batch, hex, as the coordinator sent it; the commit of the step sends it back."""
    groups: tuple[TrainGroup, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError(f"batch {self.step}: has no groups")
        newest = max(int(s.versions.max()) for s in self.sequences)
        if newest > self.step:
            raise ValueError(f"batch {self.step}: has tokens of version {newest}, which this step has yet to make")

    @property
    def sequences(self) -> list[TrainSequence]:
        """All S sequences, group by group."""
        return [sequence for group in self.groups for sequence in group.sequences]

    @property
    def group_sizes(self) -> list[int]:
        """Sequences of each group."""
        return [len(group.sequences) for group in self.groups]


def advantages(groups: Sequence[TrainGroup], *, norm_by_std: bool) -> np.ndarray:
    """float64[S] in the order of `Batch.sequences` (DAPO, arXiv:2503.14476, eq. 9).

    Every sample counts in its group's mean and deviation, also a sample that overlong filtering masks in the loss.
    """
    rewards = (np.array([s.reward for s in group.sequences]) for group in groups)
    return np.concatenate([group_advantages(values, norm_by_std=norm_by_std) for values in rewards])
