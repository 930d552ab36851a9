"""Causal attention as plain matrix products, for what fast kernels leave out: attention sinks and capped scores.

Queries come in chunks, and a chunk's scores are computed again in the backward pass, so that scores of all pairs of tokens
never exist at once. Several times slower than a fast kernel.

Letters: B sequences, H heads, K key-value heads, L tokens, C queries of a chunk, D head size.
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
    """q [B, H, L, D], k and v [B, K, L, D] -> [B, H, L, D], in the dtype of q; softmax in float32.

    sinks: [H], a score that takes its share of each head's softmax and has no value (GPT-OSS). softcap: scores become
    softcap * tanh(score / softcap) before the mask (Gemma 2). A `window` of w hides all but the w newest keys.
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    for start in range(0, q.shape[2], CHUNK_QUERIES):
        stop = min(start + CHUNK_QUERIES, q.shape[2])
        oldest = 0 if window is None else max(0, start + 1 - window)
        hidden = _hidden(start, stop, oldest=oldest, window=window, device=q.device)
        chunk = (q[:, :, start:stop], k[:, :, oldest:stop], v[:, :, oldest:stop], hidden, scale, sinks, softcap)
        parts.append(checkpoint(_chunk, *chunk, use_reentrant=False))
    return torch.cat(parts, 2)


def _hidden(start: int, stop: int, *, oldest: int, window: int | None, device: torch.device) -> Tensor:
    """bool[C, keys]: the keys, counted from `oldest`, that the queries `start` to `stop` do not see."""
    age = torch.arange(start, stop, device=device)[:, None] - torch.arange(oldest, stop, device=device)[None]
    return (age < 0) if window is None else (age < 0) | (age >= window)


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
