"""How many samples an engine runs at once, by how full its KV cache is: `rollout.max_num_seqs: auto`. No engine, no clock.

After every step of the engine:

    samples were put back        the limit is CUT times those that run
    use of the cache >= HIGH     the limit is those that run: none starts, also not for one that ends
    use < LOW, all places taken  the limit grows by GROWTH, if samples wait
    in between                   the limit stays: one that ends makes room for one

Additive increase and multiplicative decrease, as TCP's (Chiu and Jain 1989), with a band of hysteresis before the loss. Growth
is counted in steps and not in seconds, because a step is what makes every running sample longer: a pause between two steps,
such as a change of weights, changes nothing. Nothing that runs is stopped: a lower limit only starts fewer.
"""

import math
from typing import Final

FIRST_SAMPLES: Final = 16
"""The limit before the first step: one group of DAPO's size."""
LOW: Final = 0.85
HIGH: Final = 0.92
"""Shares of the cache. Measured on the first three workloads of benchmarks/adaptive_concurrency.py: .85 and .92 reach .98 of
the best fixed number with .16 to .19 preemptions a sample, .8 and .9 reach .96 to .97 with .08 to .13."""
CUT: Final = 0.9
GROWTH: Final = 0.5
"""Samples a step: 256 run after some 500 steps. Samples that start one after another end one after another, and a cache that is
filled in steps is not filled with samples that all grow long at once."""
AHEAD: Final = 1.25
"""Samples that the coordinator may have unfinished at the rollout, for each that runs: the limit rises between two heartbeats,
and grows only where samples wait."""


def handed_over(limit: int) -> int:
    """How many unfinished samples a rollout with this limit asks for."""
    return math.ceil(AHEAD * limit)


class Concurrency:
    """One engine's limit. `after_step` belongs to the engine's thread, `take_largest` to the event loop's."""

    def __init__(self, *, most: int) -> None:
        """`most` bounds the limit: the engine's capacity."""
        self._most = most
        self._limit = float(min(FIRST_SAMPLES, most))
        self._preemptions = 0
        self._largest = 0

    @property
    def limit(self) -> int:
        """Samples at once now, 1 to `most`."""
        return int(self._limit)

    def after_step(self, *, use: float, running: int, waiting: int, preemptions: int) -> int:
        """The limit after a step: share of the cache in use, samples that run and that wait, all preemptions so far."""
        were_put_back, self._preemptions = preemptions > self._preemptions, preemptions
        if were_put_back:
            self._limit = max(1.0, CUT * min(self._limit, running))
        elif use >= HIGH:
            self._limit = max(1.0, min(self._limit, running))
        elif use < LOW and waiting and running >= self.limit:
            self._limit = min(float(self._most), self._limit + GROWTH)
        self._largest = max(self._largest, self.limit)
        return self.limit

    def take_largest(self) -> int:
        """The largest limit since the last call, for a heartbeat."""
        largest, self._largest = self._largest, 0  # a step that ends in between may go uncounted
        return largest or self.limit
