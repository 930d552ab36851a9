"""The order of prompts: a pure function of (seed, epoch), so that a restart at any cursor goes on exactly as before."""

import functools

import numpy as np


def row_index(position: int, *, size: int | None, seed: int, shuffle: bool) -> tuple[int, int]:
    """Returns (epoch, row) of a 0-based position in the endless order of prompts.

    Every epoch visits each of `size` rows once, in a permutation of its own, or without `shuffle` in the stored order.
    An endless source (`size` None) is one epoch, taken in order.
    """
    if position < 0:
        raise ValueError(f"position: must be >= 0, got {position}")
    if size is None:
        return 0, position
    epoch, offset = divmod(position, size)
    return epoch, int(_permutation(seed, epoch, size)[offset]) if shuffle else offset


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """[size] int64. Sorts raw 64-bit draws: numpy keeps bit generators stable across releases, but not `permutation`."""
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(size)
    return np.argsort(draws, kind="stable")
