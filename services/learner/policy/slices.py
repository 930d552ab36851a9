"""One micro-batch over the ranks of a context group: each rank computes a slice of the tokens, all layers through.

Only attention looks across tokens. There the slices change places with heads (Ulysses, arXiv:2309.14509): a rank gives each
other rank its tokens' states of some heads, and gets the states of its own heads for all tokens, so any attention over the
whole row works unchanged. Afterwards the results change places back.

Heads have to divide. Key-value heads that do not are repeated until they do, as queries would repeat them anyway.

Letters: N tokens of the row, C ranks of the group, n = N / C rounded up, tokens of a slice (the last slices are padded), H
heads, K key-value heads, D head size, M targets of the row, m targets of a slice.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from services.learner.distributed.context_group import ContextGroup
from sluice.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """The slice of this rank."""

    context: ContextGroup
    tokens: int
    """N."""
    here: Tensor
    """int64[m]: the places of this slice's targets among the M targets."""
    targets: int
    """M."""

    def to_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[n, heads, D] of this rank's tokens -> [N, heads / C, D] of this rank's heads. Raises ConfigError."""
        size = self.context.size
        if query.shape[1] % size:
            raise ConfigError(
                f"learner.context_parallel_size: must divide the {query.shape[1]} attention heads of every layer, got {size}"
            )
        repeats = size // math.gcd(size, key.shape[1])
        if repeats > 1:
            key, value = (states.repeat_interleave(repeats, 1) for states in (key, value))
        states = (query, key, value)
        # [C, n, H / C * D] each: heads i * H / C and following go to rank i.
        parts = [each.unflatten(1, (size, -1)).transpose(0, 1).flatten(2) for each in states]
        came = self.context.exchange(torch.cat(parts, 2)).flatten(0, 1)[: self.tokens]
        own = came.split([part.shape[2] for part in parts], 1)
        query, key, value = (each.unflatten(1, (-1, whole.shape[2])) for each, whole in zip(own, states, strict=True))
        return query, key, value

    def of_heads(self, values: Tensor) -> Tensor:
        """[H] values of all heads -> [H / C] of this rank's."""
        return values.unflatten(0, (self.context.size, -1))[self.context.rank]

    def to_tokens(self, results: Tensor) -> Tensor:
        """[N, H / C, D] of this rank's heads -> [n, H, D] of this rank's tokens; padding gets zeros."""
        size = self.context.size
        padding = -(-self.tokens // size) * size - self.tokens
        flat = pad(results.flatten(1), (0, 0, 0, padding)).unflatten(0, (size, -1))
        came = self.context.exchange(flat)  # [C, n, H / C * D]: heads of rank i
        return came.transpose(0, 1).flatten(1).unflatten(1, (-1, results.shape[2]))

    def whole(self, values: Tensor) -> Tensor:
        """[m] values of this slice's targets -> [M] of all targets, on every rank of the group. Collective."""
        return self.context.add_up(values.new_zeros(self.targets).index_copy(0, self.here, values))
