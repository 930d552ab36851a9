"""What fills an engine's KV cache between two steps, and what waits for room: what an engine tells its pacer."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """Samples in the cache, or in front of it: arrays of N, in the order in which the engine starts samples."""

    held_tokens: np.ndarray = field(repr=False)
    """float64: tokens that the sample holds in the cache once its prompt and its completion so far are computed, in whole
    blocks. Running samples share out what they share of a prompt; of waiting ones the first to start holds it."""
    generated_tokens: np.ndarray = field(repr=False)
    """int64: tokens of the completion so far."""
    max_tokens: np.ndarray = field(repr=False)
    """int64: the longest completion that was asked for."""

    def __len__(self) -> int:
        return len(self.held_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheLoad:
    """One moment."""

    use: float
    """The share of the cache in use, 0 to 1; a prefix that several samples share counts once."""
    computed_tokens: float
    """Of the tokens that the running samples hold, those in the cache already: what `use` is the use of."""
    running: Sequences
    waiting: Sequences
    """The samples that start next, those put back before new ones: some of them, where many wait."""
