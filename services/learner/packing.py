"""Sequences laid end to end without padding, and what the loss needs beside them.

The linear layers see exactly the real tokens. Attention must not cross sequences: it runs in blocks of sequences of
similar length (see `attention`), whose index maps are made here, once a micro-batch.

Letters: N packed input tokens, M completion tokens (targets), B sequences of a block, L its longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.learner.batch import TrainSequence

BLOCK_SPREAD = 1.25
"""A block's longest sequence over its shortest: at most a fifth of a block is padding, and a handful of blocks do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBlock:
    """Where a run of the packed tokens lies in a padded [B, L] rectangle."""

    gather: Tensor
    """int64[B * L]: packed index of every cell; padding repeats the sequence's last token."""
    scatter: Tensor
    """int64[tokens of the block]: cell of every packed token, in packed order."""
    sequences: int
    """B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One micro-batch on one rank."""

    input_ids: Tensor
    """int64[1, N]."""
    position_ids: Tensor
    """int64[1, N], from 0 in every sequence."""
    blocks: tuple[AttentionBlock, ...]
    """In packed order, covering all N tokens."""
    predictors: Tensor
    """int64[M]: packed index of the token whose hidden state predicts the target."""
    targets: Tensor
    """int64[M]: completion token ids."""
    behaviour_logprobs: Tensor
    """float32[M], nats."""
    ages: Tensor
    """int32[M], steps."""
    advantages: Tensor
    """float32[M]."""
    weights: Tensor
    """float32[M]: the token's factor in the mini-batch's loss."""


def pack(
    sequences: Sequence[TrainSequence],
    *,
    step: int,
    advantages: Sequence[float],
    weights: Sequence[float],
    device: torch.device,
) -> Packed:
    """Packs sequences that come longest first, with one advantage and one weight each. None at all gives a dummy.

    The dummy has one input token and no target: its loss is an empty sum, yet every FSDP hook runs.
    """
    if not sequences:
        return _dummy(device)
    lengths = np.array([s.input_tokens for s in sequences])
    completions = np.array([s.completion_tokens for s in sequences])
    ends = np.cumsum(lengths)
    per_token = (
        np.concatenate([s.behaviour_logprobs for s in sequences]),
        step - np.concatenate([s.versions for s in sequences]),
        np.repeat(np.asarray(advantages, np.float32), completions),
        np.repeat(np.asarray(weights, np.float32), completions),
    )
    behaviour, ages, advantage, weight = (torch.from_numpy(values).to(device) for values in per_token)
    return Packed(
        input_ids=_ids(np.concatenate([s.token_ids[:-1] for s in sequences]), device)[None],
        position_ids=_ids(_ranges(lengths), device)[None],
        blocks=_blocks(lengths, device),
        # The last T of a sequence's inputs predict its T completion tokens.
        predictors=_ids(np.repeat(ends - completions, completions) + _ranges(completions), device),
        targets=_ids(np.concatenate([s.token_ids[s.prompt_tokens :] for s in sequences]), device),
        behaviour_logprobs=behaviour,
        ages=ages,
        advantages=advantage,
        weights=weight,
    )


def _dummy(device: torch.device) -> Packed:
    none, zero = torch.zeros(0, device=device), torch.zeros(1, 1, dtype=torch.int64, device=device)
    return Packed(
        input_ids=zero,
        position_ids=zero,
        blocks=_blocks(np.array([1]), device),
        predictors=none.long(),
        targets=none.long(),
        behaviour_logprobs=none,
        ages=none.int(),
        advantages=none,
        weights=none,
    )


def _blocks(lengths: np.ndarray, device: torch.device) -> tuple[AttentionBlock, ...]:
    """Index maps for [S] lengths in descending order."""
    starts = np.cumsum(lengths) - lengths
    blocks = []
    first = 0
    while first < len(lengths):
        fits = lengths[first:] * BLOCK_SPREAD >= lengths[first]
        last = first + int(fits.sum())
        rows, width = lengths[first:last, None], np.arange(lengths[first])[None]
        blocks.append(
            AttentionBlock(
                gather=_ids((starts[first:last, None] + np.minimum(width, rows - 1)).reshape(-1), device),
                scatter=_ids(np.flatnonzero(width < rows), device),
                sequences=last - first,
            )
        )
        first = last
    return tuple(blocks)


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """[3, 2] -> [0, 1, 2, 0, 1]."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _ids(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)
