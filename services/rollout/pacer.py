"""Sets an engine's limit of samples at once between two steps (`rollout.max_num_seqs: auto`), and keeps it for heartbeats.

Decides when to look; what follows from a look is in concurrency.py. An engine without a bounded cache keeps its limit.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from services.rollout.cache_load import CacheLoad
from services.rollout.concurrency import Concurrency
from services.rollout.engine import FinishedSample, FinishReason

LOOK_S: Final = 0.025
LOOK_S_A_SAMPLE: Final = 75e-6
"""Seconds between two looks, and how many more for each sample that may run. Measured on a slow core: a look takes .4 ms at 64
samples, .7 ms at 256, so that looking takes 2 % of the time at most. Between two looks an ended sample makes room for one."""


class Paced(Protocol):
    """What a pacer needs of an engine (services.rollout.engine.Engine)."""

    limit: int
    preemptions: int

    def cache_load(self) -> CacheLoad | None:
        """See Engine."""
        ...


class Pacer:
    """One engine's pacer. `after_step` belongs to the engine's thread, `take_limit` to the event loop's."""

    def __init__(self, concurrency: Concurrency, *, now_s: Callable[[], float]) -> None:
        self._concurrency, self._now_s = concurrency, now_s
        self._look_at_s = float("-inf")
        self._limit: int | None = None
        self._most: int | None = None

    def after_step(self, engine: Paced, ended: Sequence[FinishedSample]) -> None:
        """Takes the samples that ended in the step; looks at the cache if it is time to."""
        for sample in ended:
            if sample.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._concurrency.ended(len(sample.token_ids))
        now_s = self._now_s()
        if now_s < self._look_at_s or (load := engine.cache_load()) is None:
            return
        engine.limit = self._limit = self._concurrency.limit(load, preemptions=engine.preemptions)
        self._look_at_s = now_s + LOOK_S + LOOK_S_A_SAMPLE * engine.limit
        self._most = max(self._most or 0, self._limit)

    def take_limit(self) -> int | None:
        """The largest limit since the last call; None before the first look."""
        most, self._most = self._most, None  # a look that ends in between may go uncounted
        return self._limit if most is None else most
