"""How token losses are weighted into one loss (DAPO, arXiv:2503.14476, section 3.3, eq. 12, and its predecessors).

Every mode is linear in the token losses, so every mode is one weight a sequence, computed once for the WHOLE mini-batch
(all micro-batches, all ranks):  loss = sum_s w_s * sum_{t in s} loss_t.  Each rank adds up its own part and gradients are
summed over ranks, never averaged; the result then cannot depend on how sequences were cut into micro-batches.

Letters: S sequences of a mini-batch.
"""

import numpy as np

LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
"""verl's names for `algorithm.loss_agg_mode`."""


def token_weights(trained_tokens: np.ndarray, *, mode: str, loss_scale_factor: float | None = None) -> np.ndarray:
    """[S] trained tokens of every sequence -> [S] float64, the weight w_s of each token loss of sequence s.

    With N sequences that have trained tokens, n_s tokens in sequence s and T = sum of n_s:

    - `token-mean`               1 / T             DAPO, eq. 12: every token counts the same
    - `seq-mean-token-sum`       1 / N             mean over sequences of their sums
    - `seq-mean-token-mean`      1 / (N * n_s)     GRPO (arXiv:2402.03300): every sequence counts the same
    - `seq-mean-token-sum-norm`  1 / (N * F)       Dr. GRPO (arXiv:2503.20783), F = `loss_scale_factor`

    F must be constant over the run. Where no F is set verl takes the padded width of a response: `max_response_length`.

    A fully masked sequence has weight 0 and is in no denominator; if all sequences are masked, all weights are 0.
    Raises ValueError for an unknown mode, a negative count, or a norm mode without a positive `loss_scale_factor`.
    """
    tokens = np.asarray(trained_tokens, dtype=np.float64)
    if tokens.ndim != 1 or (tokens < 0).any():
        raise ValueError(f"token_weights: trained_tokens must be a vector of counts >= 0, got {tokens!r}")
    if mode not in LOSS_AGG_MODES:
        raise ValueError(f"algorithm.loss_agg_mode: must be one of {', '.join(LOSS_AGG_MODES)}, got {mode!r}")
    trained = tokens > 0
    weights = np.zeros_like(tokens)
    weights[trained] = 1.0 / _denominators(tokens[trained], mode=mode, loss_scale_factor=loss_scale_factor)
    return weights


def _denominators(tokens: np.ndarray, *, mode: str, loss_scale_factor: float | None) -> np.ndarray:
    """[N] positive token counts -> [N] divisors of the token losses."""
    sequences = np.full_like(tokens, tokens.size)
    if mode == "token-mean":
        return np.full_like(tokens, tokens.sum())
    if mode == "seq-mean-token-sum":
        return sequences
    if mode == "seq-mean-token-mean":
        return sequences * tokens
    if loss_scale_factor is None or loss_scale_factor <= 0:
        raise ValueError(f"token_weights: {mode} needs a loss_scale_factor > 0, got {loss_scale_factor}")
    return sequences * loss_scale_factor
