"""Soft overlong punishment (DAPO, arXiv:2503.14476, section 3.4, eq. 13).

Shapes the reward of long answers; the caller keeps the raw score apart. The paper's other remedy, overlong filtering,
masks truncated samples in the loss and is implemented in the learner.
"""


def overlong_penalty(
    response_tokens: int, *, max_response_length: int, buffer_len: int, penalty_factor: float
) -> float:
    """The punishment to add to the score of a response, <= 0.

    With L = `max_response_length` (L_max in the paper), B = `buffer_len` (L_cache) and p = `penalty_factor` (1 in the
    paper): 0 up to L - B tokens, then linear down to -p at L, and -p beyond. `response_tokens` counts the end token.

    Raises ValueError unless 0 < B < L, p >= 0 and `response_tokens` >= 0.
    """
    if not 0 < buffer_len < max_response_length:
        raise ValueError(
            f"overlong_buffer.len: must be > 0 and < max_response_length ({max_response_length}), got {buffer_len}"
        )
    if penalty_factor < 0:
        raise ValueError(f"overlong_buffer.penalty_factor: must be >= 0, got {penalty_factor}")
    if response_tokens < 0:
        raise ValueError(f"overlong_penalty: response_tokens must be >= 0, got {response_tokens}")
    tokens_into_buffer = response_tokens - (max_response_length - buffer_len)
    if tokens_into_buffer <= 0:
        return 0.0
    return -penalty_factor * min(tokens_into_buffer / buffer_len, 1.0)
