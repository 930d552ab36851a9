"""Causal attention over packed sequences in which no sequence sees another, for any transformers decoder.

On CUDA in half precision: torch's variable-length flash attention. Elsewhere torch's scaled_dot_product_attention over the
blocks of layout.py. Exact on every device. Attention sinks and caps on scores, which those kernels do not know, are computed
as plain matrix products (explicit_attention.py). There is no attention dropout.

A keyword that transformers passes and that is not known here is refused: what it stands for would be missing in silence.

Measured on one CPU core (338k-parameter Qwen3, about 32 tokens a sequence, forward and backward): 24k tokens/s in blocks,
against 9k to 22k with padded batches and 6k to 15k with one masked row. The flash path has not been run yet.

Letters: N packed tokens, H heads, K key-value heads, D head size, B sequences of a block, Q queries and L keys of the block's
longest sequence (L > Q where sequences share a prompt).
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from services.learner.policy.explicit_attention import explicit_attention, visible
from services.learner.policy.layout import PackedLayout
from services.learner.policy.slices import Slice
from sluice.errors import ConfigError

NAME = "sluice_packed"
"""`attn_implementation` of every model the learner loads."""

_ASKS_FOR_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether torch wants to be told that heads share keys and values; torch 2.11 finds it from their shapes."""

_NO_CHANGE = frozenset(
    {"dropout", "is_causal", "position_ids", "cache_position", "position_embeddings", "past_key_values", "use_cache"}
    | {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "layer_idx", "logits_to_keep"}
    | {"output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "deterministic"}
)
"""Keywords of other attentions that change nothing here: dropout is off, and the layout has what the rest describes."""


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
    layout: PackedLayout,
    part: Slice | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]; the signature that transformers calls.

    With a `sliding_window` of w a token sees itself and the w - 1 tokens before. `s_aux` and `softcap` as in
    `explicit_attention`. With a `part` the states are those of this rank's slice. Raises ConfigError for a mask of the
    model's own, and for a keyword that is not known here.
    """
    unknown = [name for name, given in others.items() if given is not None and name not in _NO_CHANGE]
    if unknown or attention_mask is not None:
        what = f"the keyword {unknown[0]}" if unknown else "a mask of its own"
        raise ConfigError(f"{type(module).__name__} gives attention {what}, which packed attention does not know")
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [N, heads, D]
    if part is not None:
        q, k, v = part.to_heads(q, k, v)
        s_aux = None if s_aux is None else part.of_heads(s_aux)
    plain = s_aux is None and softcap is None
    if (
        plain
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == value.shape[-1]
    ):
        out = _flash(layout, q, k, v, scaling=scaling, window=sliding_window)
    else:
        kernel = _plain if plain else partial(explicit_attention, sinks=s_aux, softcap=softcap)
        kernel = partial(kernel, scaling=scaling, window=sliding_window)
        out = torch.cat([block.attend(q, k, v, kernel) for block in layout.blocks])
    return (out if part is None else part.to_tokens(out))[None], None


def _flash(
    layout: PackedLayout, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """[N, heads, D] -> [N, H, D]."""
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _ASKS_FOR_GQA else {}
    out = varlen_attn(
        query, layout.keys(key), layout.keys(value),
        layout.boundaries, layout.key_boundaries, layout.longest, layout.longest_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out


def _plain(q: Tensor, k: Tensor, v: Tensor, *, scaling: float | None, window: int | None) -> Tensor:
    """q [B, H, Q, D], k and v [B, K, L, D] -> [B, H, Q, D]."""
    causal = q.shape[2] == k.shape[2] and (window is None or window >= q.shape[2])
    seen = None if causal else visible(q.shape[2], k.shape[2], window=window, device=q.device)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=scaling, enable_gqa=grouped)


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask: transformers asks for one, and the layout takes its place."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
