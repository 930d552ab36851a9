"""Causal attention as plain matrix products, for what fast kernels leave out: attention sinks and capped scores.

Queries come in chunks, and a chunk's scores are computed again in the backward pass, so that scores of all pairs of tokens
never exist at once. Several times slower than a fast kernel.

Letters: B sequences, H heads, K key-value heads, Q queries, L keys, C queries of a chunk, D head size. The last query stands
at the last key.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_QUERIES = 512
"""Scores that exist at once are [B, H, 512, L]."""


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scaling: float | None,
    window: int | None,
    sinks: Tensor | None,
    softcap: float | None,
) -> Tensor:
    """q [B, H, Q, D], k and v [B, K, L, D] -> [B, H, Q, D], in the dtype of q; softmax in float32.

    sinks: [H], a score that takes its share of each head's softmax and has no value (GPT-OSS). softcap: scores become
    softcap * tanh(score / softcap) before the mask (Gemma 2). A `window` of w hides all but the w newest keys.
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    before = k.shape[2] - q.shape[2]
    parts = []
    for start in range(0, q.shape[2], CHUNK_QUERIES):
        stop = min(start + CHUNK_QUERIES, q.shape[2])
        oldest = 0 if window is None else max(0, before + start + 1 - window)
        keys = slice(oldest, before + stop)
        hidden = ~visible(stop - start, before + stop - oldest, window=window, device=q.device)
        chunk = (q[:, :, start:stop], k[:, :, keys], v[:, :, keys], hidden, scale, sinks, softcap)
        parts.append(checkpoint(_chunk, *chunk, use_reentrant=False))
    return torch.cat(parts, 2)


def visible(queries: int, keys: int, *, window: int | None, device: torch.device) -> Tensor:
    """bool[queries, keys]: the keys that each query sees, which are the query's own position and the window - 1 before."""
    everything = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return everything if window is None else everything.triu(keys - queries + 1 - window)


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, sinks: Tensor | None, softcap: float | None
) -> Tensor:
    """[B, H, C, D]."""
    scores = (q @ k.transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        column = sinks.float()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], -1)
    shares = torch.softmax(scores, -1)[..., : k.shape[2]]
    return shares.to(v.dtype) @ v
