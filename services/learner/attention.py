"""Causal attention over packed sequences that never looks from one into another, for any transformers decoder.

Sequences of similar length are put side by side in one padded rectangle; padding stands after the real tokens, so
causality alone hides it and the fast kernels need no mask. Exact on every device, whatever the padding holds.

Not for sliding windows or attention dropout. Measured on one CPU core (338k-parameter Qwen3, about 32 tokens a
sequence, forward and backward): 24k tokens/s, against 9k to 22k with padded batches and 6k to 15k with one masked row.

Letters: N packed tokens, H heads, K key-value heads, D head size, B sequences of a block, L its longest.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from services.learner.packing import AttentionBlock

NAME = "sluice_packed"
"""`attn_implementation` of every model the learner loads."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    blocks: tuple[AttentionBlock, ...],
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]; the signature transformers calls.

    Raises ValueError when the layer has a sliding window.
    """
    if sliding_window is not None:
        raise ValueError(f"model: sliding-window attention (here {sliding_window} tokens) is not supported")
    assert attention_mask is None
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]  # [N, heads, D]
    return torch.cat([_attend(block, *flat, scaling=scaling) for block in blocks])[None], None


def _attend(block: AttentionBlock, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None) -> Tensor:
    """[N, heads, D] of all sequences -> [tokens of the block, H, D]."""
    q, k, v = (
        states[block.gather].unflatten(0, (block.sequences, -1)).transpose(1, 2) for states in (query, key, value)
    )  # [B, heads, L, D]
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)[block.scatter]


def _no_mask(*_: Any, **__: Any) -> None:
    """transformers asks for a mask; the blocks replace it."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
