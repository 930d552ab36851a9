"""Causal attention over packed sequences in which no sequence sees another, for any transformers decoder.

On CUDA in half precision: torch's variable-length flash attention. Elsewhere sequences of similar length are put side by
side in one padded rectangle; padding stands after the real tokens, so causality alone hides the padding and fast kernels
need no mask. Exact on every device, whatever the padding holds. Attention sinks and caps on scores, which those kernels do
not know, are computed as plain matrix products (explicit_attention.py). There is no attention dropout.

A keyword that transformers passes and that is not known here is refused: what it stands for would be missing in silence.

Measured on one CPU core (338k-parameter Qwen3, about 32 tokens a sequence, forward and backward): 24k tokens/s in blocks,
against 9k to 22k with padded batches and 6k to 15k with one masked row. The flash path has not been run yet.

Letters: N packed tokens, H heads, K key-value heads, D head size, S sequences, B sequences of a block, L tokens of the
block's longest sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from services.learner.policy.explicit_attention import explicit_attention
from sluice.errors import ConfigError

NAME = "sluice_packed"
"""`attn_implementation` of every model the learner loads."""

_NO_CHANGE = frozenset(
    {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings", "past_key_values", "use_cache"}
    | {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "layer_idx", "logits_to_keep"}
    | {"output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "deterministic"}
)
"""Keywords of other attentions that change nothing here: dropout is off, and the layout has what the rest describes."""

BLOCK_SPREAD = 1.25
"""A block's longest sequence over its shortest: at most a fifth of a block is padding, and a handful of blocks do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBlock:
    """The places of a run of packed tokens in a padded [B, L] rectangle."""

    gather: Tensor
    """int64[B * L]: packed index of every cell; padding repeats the sequence's last token."""
    scatter: Tensor
    """int64[tokens of the block]: cell of every packed token, in packed order."""
    sequences: int
    """B."""


class Layout:
    """Where the sequences of one packed micro-batch begin and end, in the form of each kernel, made at the first use."""

    def __init__(self, lengths: np.ndarray, device: torch.device) -> None:
        """lengths: [S] tokens of each sequence, longest first, in packed order."""
        self._lengths = lengths
        self._device = device

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self._lengths[0])

    @cached_property
    def boundaries(self) -> Tensor:
        """int32[S + 1]: where each sequence starts, and the end."""
        ends = np.concatenate([[0], np.cumsum(self._lengths)])
        return torch.from_numpy(ends.astype(np.int32)).to(self._device)

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """The blocks in packed order; together they cover all N tokens."""
        lengths, starts = self._lengths, np.cumsum(self._lengths) - self._lengths
        blocks = []
        first = 0
        while first < len(lengths):
            fits = lengths[first:] * BLOCK_SPREAD >= lengths[first]
            last = first + int(fits.sum())
            blocks.append(self._block(starts[first:last], lengths[first:last]))
            first = last
        return tuple(blocks)

    @cached_property
    def rectangle(self) -> AttentionBlock:
        """All sequences in one block, a row each."""
        return self._block(np.cumsum(self._lengths) - self._lengths, self._lengths)

    @cached_property
    def sequence_ids(self) -> Tensor:
        """int32[N]: which sequence each packed token belongs to."""
        return self._ids(np.repeat(np.arange(len(self._lengths)), self._lengths)).int()

    def _block(self, starts: np.ndarray, lengths: np.ndarray) -> AttentionBlock:
        """The block of the sequences that start at `starts`, longest first."""
        rows, width = lengths[:, None], np.arange(lengths[0])[None]
        return AttentionBlock(
            gather=self._ids(starts[:, None] + np.minimum(width, rows - 1)),
            scatter=self._ids(np.flatnonzero(width < rows)),
            sequences=len(lengths),
        )

    def _ids(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.reshape(-1).astype(np.int64)).to(self._device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    layout: Layout,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]; the signature that transformers calls.

    With a `sliding_window` of w a token sees itself and the w - 1 tokens before. `s_aux` and `softcap` as in
    `explicit_attention`. Raises ConfigError for a mask of the model's own, and for a keyword that is not known here.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _NO_CHANGE]
    if unknown or attention_mask is not None:
        what = f"the keyword {unknown[0]}" if unknown else "a mask of its own"
        raise ConfigError(f"{type(module).__name__} gives attention {what}, which packed attention does not know")
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # [N, heads, D]
    plain = s_aux is None and softcap is None
    if (
        plain
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1]
    ):
        return _flash(layout, *flat, scaling=scaling, window=sliding_window)[None], None
    kernel = _plain if plain else partial(explicit_attention, sinks=s_aux, softcap=softcap)
    parts = [
        _attend(block, *flat, kernel=partial(kernel, scaling=scaling, window=sliding_window)) for block in layout.blocks
    ]
    return torch.cat(parts)[None], None


def _flash(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """[N, heads, D] -> [N, H, D]."""
    out = varlen_attn(
        query, key, value, layout.boundaries, layout.boundaries, layout.longest, layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def _attend(
    block: AttentionBlock,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """[N, heads, D] of all sequences -> [tokens of the block, H, D]."""
    q, k, v = (
        states[block.gather].unflatten(0, (block.sequences, -1)).transpose(1, 2) for states in (query, key, value)
    )
    return kernel(q, k, v).transpose(1, 2).flatten(0, 1)[block.scatter]


def _plain(q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None, window: int | None) -> Tensor:
    """[B, heads, L, D] -> [B, H, L, D]."""
    band = None if window is None or window >= q.shape[2] else _band(q.shape[2], window, q.device)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=grouped
    )


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool[L, L]: the keys that each query sees, which are the query's own position and the window - 1 before."""
    everything = torch.ones(length, length, dtype=torch.bool, device=device)
    return everything.tril().triu(1 - window)


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask: transformers asks for one, and the layout takes its place."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
