"""A timed engine: a fixed number of sequences at once, the same time for every token, lengths that may have a long tail.

With a token time of 0 the engine waits for nothing. Else a sequence waits for a free slot, and then for the time of its
tokens, which `stop` cuts short.
"""

import asyncio
import contextlib
import random
from collections import deque
from dataclasses import dataclass, field

from sluice.v1 import common_pb2 as common


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Completion lengths in tokens: log-normal, cut at `most`; with sigma 0 every length is the median."""

    median: int
    sigma: float = 0.0
    most: int = 1 << 20

    def draw(self, seed: int) -> int:
        """The length of the sample with this seed, 1 at least."""
        if self.sigma == 0.0:
            return self.median
        return max(1, min(self.most, round(self.median * random.Random(seed).lognormvariate(0.0, self.sigma))))


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One sequence."""

    tokens: int
    spans: list[common.VersionSpan]
    cut_short: bool = False


@dataclass(kw_only=True, slots=True)
class TimedEngine:
    """One rollout's engine."""

    lengths: Lengths = Lengths(median=3)
    token_s: float = 0.0
    slots: int = 64
    version: common.PolicyVersion = field(default_factory=common.PolicyVersion)
    """The version in use."""
    busy_s: float = 0.0
    """Sequence-seconds generated. Divided by slots and wall time: the share of the engine in use."""
    _free: asyncio.Semaphore = field(init=False)
    _changes: deque[tuple[float, common.PolicyVersion]] = field(default_factory=lambda: deque(maxlen=64))

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.slots)

    def apply(self, version: common.PolicyVersion) -> None:
        """New weights, between two tokens."""
        self.version = version
        self._changes.append((asyncio.get_running_loop().time(), version))

    async def generate(self, seed: int, *, most: int, stop: asyncio.Event) -> Generated:
        """A sequence of at most `most` tokens; returns when the sequence's time has passed or `stop` is set."""
        tokens = min(self.lengths.draw(seed), most)
        if self.token_s == 0.0:
            return Generated(tokens=tokens, spans=_spans([(0, self.version)], tokens))
        async with self._free:
            started, first = asyncio.get_running_loop().time(), self.version
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tokens * self.token_s):
                    await stop.wait()
                    whole, tokens = tokens, self._so_far(started, tokens)
                    return self._done(started, first, tokens, cut_short=tokens < whole)
            return self._done(started, first, tokens, cut_short=False)

    def _so_far(self, started: float, most: int) -> int:
        passed_s = asyncio.get_running_loop().time() - started
        return max(1, min(most, int(passed_s / self.token_s)))

    def _done(self, started: float, first: common.PolicyVersion, tokens: int, *, cut_short: bool) -> Generated:
        self.busy_s += tokens * self.token_s
        cuts = [(0, first)]
        for when, version in self._changes:
            at = int((when - started) / self.token_s)
            if when > started and cuts[-1][0] < at < tokens:
                cuts.append((at, version))
        return Generated(tokens=tokens, spans=_spans(cuts, tokens), cut_short=cut_short)


def _spans(cuts: list[tuple[int, common.PolicyVersion]], tokens: int) -> list[common.VersionSpan]:
    """(first token, version)... -> spans up to `tokens`."""
    ends = [at for at, _ in cuts[1:]] + [tokens]
    return [
        common.VersionSpan(version=version, start_token=at, end_token=end)
        for (at, version), end in zip(cuts, ends, strict=True)
    ]
