"""One step's groups as the learner sees them: token ids, facts of sampling, rewards. No text, no wire types.

Refuses a batch that could not be trained correctly. Masks come from lengths, never from token values, so that a padding id
that equals the end token cannot hide an end token.

An episode in an environment has observed tokens between those that the policy sampled: they are context and no target, so no
loss, statistic or count has them. Where the history was rewritten or forked an episode is several sequences, of one sample.

Letters: P prompt tokens, T completion tokens of one sequence, A sampled ones among them (T where nothing was observed), S
sequences of a batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sluice.dapo.advantage import group_advantages, maxrl_advantages


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSequence:
    """One sample with its prompt, or a part of an episode. Raises ValueError when its parts contradict each other."""

    token_ids: np.ndarray
    """int32[P + T]: prompt, then completion (end token included)."""
    prompt_tokens: int
    """P >= 1: the first completion token needs a token that predicts it."""
    rollout_logprobs: np.ndarray
    """float32[A], nats: log-probabilities of the sampled tokens under the distribution that the tokens come from."""
    versions: np.ndarray
    """int32[A]: number of the version that sampled each token."""
    reward: float
    """The shaped reward of the sample."""
    truncated: bool
    """Cut at the longest completion instead of ending by itself."""
    observed: np.ndarray | None = None
    """bool[T]: which completion tokens an environment wrote; None: none. The first and the last one are sampled."""
    continues: bool = False
    """Whether the sequence is of the same sample as the one before it in the group, after a rewritten history."""
    acc: float = math.nan
    """1 when the sample is right, 0 when it is wrong; NaN where that is not known, which MaxRL's advantages refuse."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"prompt: must have at least one token, got {self.prompt_tokens}")
        if self.completion_tokens < 1:
            raise ValueError(f"completion: must have at least one token, got {self.completion_tokens}")
        if self.observed is not None:
            self._check_observed(self.observed)
        for name, values in (("rollout_logprobs", self.rollout_logprobs), ("versions", self.versions)):
            if values.shape != (self.sampled_tokens,):
                of = "completion" if self.observed is None else "sampled"
                raise ValueError(
                    f"{name}: must have one value a {of} token ({self.sampled_tokens}), got {values.shape}"
                )
        if not np.isfinite(self.reward):
            raise ValueError(f"reward: must be finite, got {self.reward}")

    def _check_observed(self, observed: np.ndarray) -> None:
        if observed.shape != (self.completion_tokens,) or observed.dtype != np.bool_:
            raise ValueError(f"observed: must be a bool a completion token, got {observed.dtype} {observed.shape}")
        if observed[0] or observed[-1]:
            raise ValueError("observed: the first and the last completion token must be sampled")

    @property
    def completion_tokens(self) -> int:
        """T."""
        return len(self.token_ids) - self.prompt_tokens

    @property
    def sampled_tokens(self) -> int:
        """A."""
        return self.completion_tokens - (0 if self.observed is None else int(self.observed.sum()))

    @property
    def sampled(self) -> np.ndarray:
        """bool[T]: which completion tokens the policy sampled."""
        return np.ones(self.completion_tokens, np.bool_) if self.observed is None else ~self.observed

    @property
    def targets(self) -> np.ndarray:
        """int32[A]: the sampled tokens."""
        completion = self.token_ids[self.prompt_tokens :]
        return completion if self.observed is None else completion[~self.observed]

    @property
    def input_tokens(self) -> int:
        """P + T - 1: the tokens that the model reads; the last token predicts nothing."""
        return len(self.token_ids) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainGroup:
    """The samples of one row. They share its prompt, but for episodes of agents that began otherwise (`one_prompt`)."""

    group_id: str
    sequences: tuple[TrainSequence, ...]

    def __post_init__(self) -> None:
        if not self.sequences:
            raise ValueError(f"group {self.group_id}: has no samples")
        first = self.sequences[0]
        if first.continues:
            raise ValueError(f"group {self.group_id}: its first sequence continues nothing")
        for former, s in pairwise(self.sequences):
            if s.continues and (former.reward, former.truncated) != (s.reward, s.truncated):
                raise ValueError(f"group {self.group_id}: sequences of one sample have different rewards or ends")

    @property
    def one_prompt(self) -> bool:
        """Whether all sequences begin with the same prompt."""
        first = self.sequences[0]
        prompt = first.token_ids[: first.prompt_tokens]
        return all(np.array_equal(s.token_ids[: s.prompt_tokens], prompt) for s in self.sequences)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The groups of step `step`."""

    step: int
    digest: str
    """blake3 of the stored batch, hex, as the coordinator sent it; the commit of the step sends it back."""
    groups: tuple[TrainGroup, ...]
    traceparents: tuple[str, ...] = ()
    """The place of each group in its trace, for rank 0; empty without traces."""

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


def advantages(groups: Sequence[TrainGroup], *, norm_by_std: bool, maxrl: bool = False) -> np.ndarray:
    """float64[S] in the order of `Batch.sequences` (DAPO, arXiv:2503.14476, eq. 9; with `maxrl` those of MaxRL).

    Every sample counts once in its group's mean and deviation, also a sample that overlong filtering masks in the loss. The
    sequences of one sample share its advantage.
    """
    found = []
    for group in groups:
        samples = [s for s in group.sequences if not s.continues]
        if maxrl:
            of_samples = maxrl_advantages(np.array([s.acc for s in samples]))
        else:
            of_samples = group_advantages(np.array([s.reward for s in samples]), norm_by_std=norm_by_std)
        found.append(of_samples[samples_of(group.sequences)])
    return np.concatenate(found)


def samples_of(sequences: Sequence[TrainSequence]) -> np.ndarray:
    """int64[S]: the number of each sequence's sample, from 0, counted over all of them."""
    return np.cumsum([not s.continues for s in sequences]) - 1
