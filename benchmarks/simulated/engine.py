"""A timed engine, simulated: so many sequences at once, every token takes the same time, lengths come from a long tail.

Instant where a token takes no time: then every completion has the median's length, and nothing is waited for.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

from benchmarks.simulated.names import version
from sluice.v1 import common_pb2 as common


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Completion lengths in tokens: log-normal, cut at `most`; sigma 0 makes all of them the median."""

    median: int
    sigma: float = 0.0
    most: int = 1 << 20

    def draw(self, seed: int) -> int:
        """The length of the sample with this seed, 1 at least."""
        if self.sigma == 0.0:
            return self.median
        return max(1, min(self.most, round(self.median * random.Random(seed).lognormvariate(0.0, self.sigma))))


@dataclass(kw_only=True, slots=True)
class TimedEngine:
    """One rollout's engine. Nothing waits here but for tokens' time and for a free slot, which ends in tokens' time."""

    lengths: Lengths
    token_s: float
    slots: int
    number: int = 0
    """The version in use."""
    busy_s: float = 0.0
    """Sequence-seconds generated: over slots and wall time, the share of the engine in use."""
    _free: asyncio.Semaphore = field(init=False)
    _changes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.slots)

    def apply(self, number: int) -> None:
        """New weights, between two tokens."""
        self.number = number
        self._changes.append((asyncio.get_running_loop().time(), number))

    async def generate(self, seed: int) -> tuple[int, list[common.VersionSpan]]:
        """Length and version spans of one completion, when its time has passed."""
        tokens = self.lengths.draw(seed)
        if self.token_s == 0.0:
            return tokens, _spans([(0, self.number)], tokens)
        async with self._free:
            started, first = asyncio.get_running_loop().time(), self.number
            await asyncio.sleep(tokens * self.token_s)
            self.busy_s += tokens * self.token_s
            cuts = [(0, first)]
            for when, number in self._changes:
                at = int((when - started) / self.token_s)
                if when > started and cuts[-1][0] < at < tokens:
                    cuts.append((at, number))
            return tokens, _spans(cuts, tokens)


def _spans(cuts: list[tuple[int, int]], tokens: int) -> list[common.VersionSpan]:
    """(first token, version number)... -> spans up to `tokens`."""
    ends = [at for at, _ in cuts[1:]] + [tokens]
    return [
        common.VersionSpan(version=version(number), start_token=at, end_token=end)
        for (at, number), end in zip(cuts, ends, strict=True)
    ]
