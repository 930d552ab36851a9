"""The least that makes samples durable: one process writes each sample by itself, and takes the answer before the next one.

The peer of coordinator_relay for samples a second. No admission, no check, no verdict, no order, no ledger.
"""

import time

import numpy as np
import redis

from benchmarks.simulated.fleet import Canned
from sluice.v1 import common_pb2 as common

WARM_UP = 50


def write_samples(url: str, *, samples: int, tokens: int) -> tuple[float, float]:
    """(CPU seconds of this process, wall seconds) for `samples` of `tokens` tokens each. Blocking; raises RedisError."""
    canned, seeds = Canned(tokens), np.random.default_rng(0).integers(0, 1 << 31, WARM_UP + samples)
    with redis.Redis.from_url(url) as client:

        def write(seed: int) -> None:
            token_ids, logprobs = canned.cut(seed, tokens)
            sample = common.Sample(token_ids=token_ids, logprobs=logprobs, text="579", seed=seed)
            client.xadd("samples", {"payload": sample.SerializeToString()})

        for seed in seeds[:WARM_UP].tolist():
            write(seed)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for seed in seeds[WARM_UP:].tolist():
            write(seed)
        return time.process_time() - began_cpu_s, time.perf_counter() - began_s
