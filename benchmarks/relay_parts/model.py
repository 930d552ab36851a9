"""A push to any number of rollouts, bucket by bucket, on paper: when the last one has the last bucket.

A bucket leaves a source when the source has verified the bucket and the receiver is done with the former one. A host's
link is shared by the receivers that the host serves on other hosts; a host's memory by those that it serves itself. No
packet is lost and nobody waits for a processor: what a chain loses by its length and what pairs lose by sharing one link.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketCosts:
    """Seconds a bucket."""

    link_s: float
    """On a link between two hosts, alone."""
    local_s: float
    """Between two processes of a host."""
    handling_s: float
    """Of the receiver: what an operation costs at any size, and the digest."""


def push_s(
    sources: Mapping[str, str], hosts: Mapping[str, str], *, root: str, buckets: int, costs: BucketCosts
) -> dict[str, float]:
    """Seconds from the start until each receiver has verified all buckets. `hosts` has the root's too."""
    across, within = Counter[str](), Counter[str]()
    for name, source in sources.items():
        if hosts[name] == hosts[source]:
            within[source] += 1
        else:
            across[hosts[source]] += 1
    verified = {root: np.zeros(buckets)}
    number = np.arange(1, buckets + 1)
    waiting = dict(sources)
    while waiting:
        for name, source in [(name, source) for name, source in waiting.items() if source in verified]:
            del waiting[name]
            if hosts[name] == hosts[source]:
                cost_s = costs.local_s * within[source] + costs.handling_s
            else:
                cost_s = costs.link_s * across[hosts[source]] + costs.handling_s
            # The recursion done[b] = max(ready[b], done[b - 1]) + cost, as a running maximum.
            started = np.maximum.accumulate(verified[source] - (number - 1) * cost_s)
            verified[name] = started + number * cost_s
    return {name: float(times[-1]) for name, times in verified.items() if name != root}
