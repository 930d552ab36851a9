"""What continues a conversation after a turn of the policy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Continuation:
    """The tokens with which a conversation goes on, up to and with the opening of the policy's next turn."""

    token_ids: np.ndarray
    """int32: what follows the sampled tokens; or, after a rewritten history, the whole new context."""
    rewritten: bool
    """Whether the template has written the history anew, so that the policy's next turn has a context of its own."""


def rendered_anew(whole: np.ndarray, *, context: np.ndarray, sampled: np.ndarray) -> Continuation:
    """The continuation by a rendering of the whole history: no rewritten one where the rendering begins with the same ids."""
    stream = np.concatenate([context, sampled])
    if len(whole) > len(stream) and np.array_equal(whole[: len(stream)], stream):
        return Continuation(token_ids=whole[len(stream) :], rewritten=False)
    return Continuation(token_ids=whole, rewritten=True)
