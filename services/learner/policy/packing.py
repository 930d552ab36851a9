"""Sequences laid end to end without padding, and the arrays that the loss needs.

The linear layers see exactly the real tokens; `attention` keeps tokens from looking across sequences. With context
parallelism each rank of a group has a slice of the row (slices.py).

Targets are the tokens that the policy sampled; what an environment wrote is read and never predicted.

Letters: N packed input tokens, M sampled tokens (targets), S sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from services.learner.batches.batch import TrainSequence
from services.learner.distributed.context_group import ContextGroup
from services.learner.policy.layout import Layout, PackedLayout, SharedLayout
from services.learner.policy.slices import Slice


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One micro-batch on one rank."""

    input_ids: Tensor
    """int64[1, N]."""
    position_ids: Tensor
    """int64[1, N], from 0 in every sequence."""
    layout: PackedLayout
    """The layout of all N tokens, for the attention."""
    predictors: Tensor
    """int64[M]: packed index of the token whose hidden state predicts the target."""
    targets: Tensor
    """int64[M]: ids of the sampled tokens."""
    sequence: Tensor
    """int64[M]: which of the S sequences each target belongs to, in packed order."""
    sequences: int
    """S."""
    rollout_logprobs: Tensor
    """float32[M], nats."""
    ages: Tensor
    """int32[M], steps."""
    advantages: Tensor
    """float32[M]."""
    weights: Tensor
    """float32[M]: the token's factor in the mini-batch's loss."""
    part: Slice | None = None
    """The slice of the row that this rank has: then N and M count the slice's tokens and targets, and `layout` and
    `sequences` are of the whole row. None: this rank has the whole row."""

    def add_up(self, values: Tensor) -> Tensor:
        """Sums over the whole row of sums over the tokens here. Collective where the row is sliced."""
        return values if self.part is None else self.part.context.add_up(values)

    def whole(self, values: Tensor) -> Tensor:
        """float32[M] values of the targets here -> those of all targets of the row. Collective where it is sliced."""
        return values if self.part is None else self.part.whole(values)


def pack(
    sequences: Sequence[TrainSequence],
    *,
    step: int,
    advantages: Sequence[float],
    weights: Sequence[float],
    device: torch.device,
    groups: Sequence[int] | None = None,
) -> Packed:
    """Packs sequences that come longest first, with one advantage and one weight each. No sequences give a dummy.

    With `groups`, the number of each sequence's group, a group's prompt is laid out once; the sequences then come group by
    group, longest prompt first, and longest first in a group. The dummy has one input token and no target: its loss is an
    empty sum, yet every FSDP hook runs.
    """
    if not sequences:
        return _dummy(device)
    sampled = np.array([s.sampled_tokens for s in sequences])
    tokens = _whole(sequences, device) if groups is None else _shared(sequences, groups, device)
    predictors = tokens.predictors
    if any(s.observed is not None for s in sequences):
        predictors = predictors[np.concatenate([s.sampled for s in sequences])]
    per_token = (
        np.concatenate([s.rollout_logprobs for s in sequences]),
        step - np.concatenate([s.versions for s in sequences]),
        np.repeat(np.asarray(advantages, np.float32), sampled),
        np.repeat(np.asarray(weights, np.float32), sampled),
    )
    rollout, ages, advantage, weight = (torch.from_numpy(values).to(device) for values in per_token)
    return Packed(
        input_ids=_ids(tokens.ids, device)[None],
        position_ids=_ids(tokens.positions, device)[None],
        layout=tokens.layout,
        predictors=_ids(predictors, device),
        targets=_ids(np.concatenate([s.targets for s in sequences]), device),
        sequence=_ids(np.repeat(np.arange(len(sequences)), sampled), device),
        sequences=len(sequences),
        rollout_logprobs=rollout,
        ages=ages,
        advantages=advantage,
        weights=weight,
    )


_OF_TARGETS = ("targets", "sequence", "rollout_logprobs", "ages", "advantages", "weights")


def sliced(packed: Packed, context: ContextGroup) -> Packed:
    """This rank's slice of a micro-batch that every rank of the group has; a group of one has the whole.

    Everything that looks from one token to another (positions, targets, layout) was made for the whole row before.
    """
    if context.size == 1:
        return packed
    tokens = packed.input_ids.shape[1]
    width = -(-tokens // context.size)
    first = context.rank * width
    predictors = packed.predictors - first
    here = ((predictors >= 0) & (predictors < width)).nonzero()[:, 0]

    def cut(values: Tensor) -> Tensor:
        return pad(values, (0, width * context.size - tokens))[:, first : first + width]

    return replace(
        packed,
        input_ids=cut(packed.input_ids),
        position_ids=cut(packed.position_ids),
        predictors=predictors[here],
        part=Slice(context=context, tokens=tokens, here=here, targets=len(predictors)),
        **{name: getattr(packed, name)[here] for name in _OF_TARGETS},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokens:
    """The N packed tokens; each array int[N], but `predictors`: one a completion token, sampled or observed."""

    ids: np.ndarray
    positions: np.ndarray
    predictors: np.ndarray
    layout: PackedLayout


def _whole(sequences: Sequence[TrainSequence], device: torch.device) -> _Tokens:
    """Prompt and completion of each sequence end to end."""
    lengths = np.array([s.input_tokens for s in sequences])
    completions = np.array([s.completion_tokens for s in sequences])
    # The last T input tokens of a sequence predict the sequence's T completion tokens.
    predictors = np.repeat(np.cumsum(lengths) - completions, completions) + _ranges(completions)
    ids = np.concatenate([s.token_ids[:-1] for s in sequences])
    return _Tokens(ids=ids, positions=_ranges(lengths), predictors=predictors, layout=Layout(lengths, device))


def _shared(sequences: Sequence[TrainSequence], groups: Sequence[int], device: torch.device) -> _Tokens:
    """The prompt of each group, then the completions; a prompt's last token predicts the first token of each completion."""
    place = np.concatenate([[0], np.cumsum(np.diff(groups) != 0)])
    heads = [sequences[first] for first in np.flatnonzero(np.diff(place, prepend=-1)).tolist()]
    prompts = np.array([s.prompt_tokens for s in heads])
    own = np.array([s.completion_tokens - 1 for s in sequences])
    own_starts = prompts.sum() + np.cumsum(own) - own
    predictors = [
        np.concatenate([[last], np.arange(start, start + count)])
        for last, start, count in zip((np.cumsum(prompts) - 1)[place], own_starts, own, strict=True)
    ]
    ids = [s.token_ids[: s.prompt_tokens] for s in heads] + [s.token_ids[s.prompt_tokens : -1] for s in sequences]
    return _Tokens(
        ids=np.concatenate(ids),
        positions=np.concatenate([_ranges(prompts), np.repeat(prompts[place], own) + _ranges(own)]),
        predictors=np.concatenate(predictors),
        layout=SharedLayout(prompts, [own[place == group] for group in range(len(prompts))], device),
    )


def _dummy(device: torch.device) -> Packed:
    none, zero = torch.zeros(0, device=device), torch.zeros(1, 1, dtype=torch.int64, device=device)
    return Packed(
        input_ids=zero,
        position_ids=zero,
        layout=Layout(np.array([1]), device),
        predictors=none.long(),
        targets=none.long(),
        sequence=none.long(),
        sequences=0,
        rollout_logprobs=none,
        ages=none.int(),
        advantages=none,
        weights=none,
    )


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """[3, 2] -> [0, 1, 2, 0, 1]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _ids(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
