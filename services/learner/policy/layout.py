"""Where the sequences of one packed micro-batch lie, in the form that each attention kernel takes.

Two layouts. `Layout` lays whole sequences end to end. `SharedLayout` lays a group's prompt out once: first all prompts, then
the completions of each group; a completion's tokens see the group's prompt and their own tokens before them.

On the CPU sequences of similar length are put side by side in one padded rectangle, a block. Padding stands after the real
tokens, so causality alone hides the padding, whatever the padding holds.

Letters: N packed tokens, H heads, K key-value heads, D head size, S sequences, G groups, P prompt tokens of a group, B
sequences of a block, L tokens of the block's longest sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

BLOCK_SPREAD = 1.25
"""A block's longest sequence over its shortest: at most a fifth of a block is padding, and a handful of blocks do."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""[B, H, L, D] queries, [B, K, P + L, D] keys and values (P is 0 without a shared prompt) -> [B, H, L, D]; the last query
sees every key, each query before it one key less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBlock:
    """The places of a run of packed tokens in a padded [B, L] rectangle."""

    gather: Tensor
    """int64[B * L]: packed index of every cell; padding repeats the sequence's last token."""
    scatter: Tensor
    """int64[tokens of the block]: cell of every packed token, in packed order."""
    sequences: int
    """B."""
    prompt: slice | None = None
    """The places of a prompt that stands before each of the B sequences."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """[N, heads, D] of all sequences -> [tokens of the block, H, D]."""
        q, k, v = (self._rectangle(states) for states in (query, key, value))
        if self.prompt is not None:
            k, v = (torch.cat([self._before(states), own], 2) for states, own in ((key, k), (value, v)))
        return kernel(q, k, v).transpose(1, 2).flatten(0, 1)[self.scatter]

    def _rectangle(self, states: Tensor) -> Tensor:
        """[B, heads, L, D]."""
        return states[self.gather].unflatten(0, (self.sequences, -1)).transpose(1, 2)

    def _before(self, states: Tensor) -> Tensor:
        """[B, heads, P, D]: the prompt's states, the same memory for each sequence."""
        return states[self.prompt].transpose(0, 1).expand(self.sequences, -1, -1, -1)


class Layout:
    """Whole sequences end to end; each form is made at its first use."""

    def __init__(self, lengths: np.ndarray, device: torch.device) -> None:
        """lengths: [S] tokens of each sequence, longest first, in packed order."""
        self._lengths = lengths
        self._device = device

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self._lengths[0])

    @property
    def longest_keys(self) -> int:
        """As `longest`: a token's keys are its sequence's."""
        return self.longest

    @cached_property
    def boundaries(self) -> Tensor:
        """int32[S + 1]: where each sequence starts, and the end."""
        return _boundaries(self._lengths, self._device)

    @property
    def key_boundaries(self) -> Tensor:
        """As `boundaries`."""
        return self.boundaries

    def keys(self, states: Tensor) -> Tensor:
        """The states as they are."""
        return states

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """Blocks of sequences of like length."""
        return _blocks(_starts(self._lengths), self._lengths, self._device)

    @cached_property
    def rectangle(self) -> AttentionBlock:
        """All sequences in one block, a row each."""
        return _block(_starts(self._lengths), self._lengths, self._device)

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int32[N]: which sequence each packed token belongs to."""
        return _sequence_ids(self._lengths, self._device)


class SharedLayout:
    """All prompts end to end, then each group's completions; a prompt and a completion count as a sequence each."""

    def __init__(self, prompts: np.ndarray, completions: Sequence[np.ndarray], device: torch.device) -> None:
        """prompts: [G] tokens, longest first. completions: for each group the input tokens of each completion, longest first.

        A completion of one token has no input token of its own: the prompt's last token predicts the completion.
        """
        self._prompts = prompts
        self._completions = completions
        self._device = device
        self._lengths = np.concatenate([prompts, *completions])
        self._before = np.concatenate([np.zeros_like(prompts), np.repeat(prompts, [len(each) for each in completions])])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt or completion."""
        return int(self._lengths.max())

    @property
    def longest_keys(self) -> int:
        """Tokens of the longest prompt with a completion."""
        return int((self._before + self._lengths).max())

    @cached_property
    def boundaries(self) -> Tensor:
        """int32[G + S + 1]: where each prompt or completion starts, and the end."""
        return _boundaries(self._lengths, self._device)

    @cached_property
    def key_boundaries(self) -> Tensor:
        """int32[G + S + 1]: the same with each completion's prompt before the completion."""
        return _boundaries(self._before + self._lengths, self._device)

    def keys(self, states: Tensor) -> Tensor:
        """[N, K, D] -> [N + P of each completion, K, D]."""
        return states[self._key_places]

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """Blocks of prompts of like length, then of each group's completions of like length."""
        starts = _starts(self._prompts)
        blocks = list(_blocks(starts, self._prompts, self._device))
        first = int(self._prompts.sum())
        for start, prompt, lengths in zip(starts, self._prompts, self._completions, strict=True):
            own = lengths[lengths > 0]
            blocks += _blocks(first + _starts(own), own, self._device, prompt=slice(int(start), int(start + prompt)))
            first += int(own.sum())
        return tuple(blocks)

    @property
    def rectangle(self) -> AttentionBlock:
        """Not made: a model that takes one sequence a row shares nothing."""
        raise AssertionError("rows have whole sequences")

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int32[N]: which prompt or completion each packed token belongs to."""
        return _sequence_ids(self._lengths, self._device)

    @cached_property
    def _key_places(self) -> Tensor:
        """int64: packed index of every key of `keys`."""
        groups = range(len(self._prompts))
        of_group = [*groups, *np.repeat(groups, [len(each) for each in self._completions]).tolist()]
        starts = _starts(self._lengths)
        before = starts[of_group] - np.cumsum(self._before) + self._before  # so that a count from here is a place
        prompts = np.repeat(before, self._before) + np.arange(self._before.sum())
        parts = np.split(prompts, np.cumsum(self._before)[:-1])
        own = np.split(np.arange(self._lengths.sum()), starts[1:])
        return _ids(np.concatenate([part for pair in zip(parts, own, strict=True) for part in pair]), self._device)


PackedLayout = Layout | SharedLayout


def _blocks(
    starts: np.ndarray, lengths: np.ndarray, device: torch.device, *, prompt: slice | None = None
) -> tuple[AttentionBlock, ...]:
    """The sequences that start at `starts`, longest first, cut where the next is much shorter than a block's first."""
    blocks = []
    first = 0
    while first < len(lengths):
        fits = lengths[first:] * BLOCK_SPREAD >= lengths[first]
        last = first + int(fits.sum())
        blocks.append(_block(starts[first:last], lengths[first:last], device, prompt=prompt))
        first = last
    return tuple(blocks)


def _block(
    starts: np.ndarray, lengths: np.ndarray, device: torch.device, *, prompt: slice | None = None
) -> AttentionBlock:
    """The block of the sequences that start at `starts`, longest first."""
    rows, width = lengths[:, None], np.arange(lengths[0])[None]
    return AttentionBlock(
        gather=_ids(starts[:, None] + np.minimum(width, rows - 1), device),
        scatter=_ids(np.flatnonzero(width < rows), device),
        sequences=len(lengths),
        prompt=prompt,
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _boundaries(lengths: np.ndarray, device: torch.device) -> Tensor:
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return torch.from_numpy(ends.astype(np.int32)).to(device)


def _sequence_ids(lengths: np.ndarray, device: torch.device) -> Tensor:
    return _ids(np.repeat(np.arange(len(lengths)), lengths), device).int()


def _ids(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.reshape(-1).astype(np.int64)).to(device)
