"""Reads vLLM's scheduler between two steps: what its KV cache holds, and what waits for room. Tested with vLLM 0.32."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Final

import numpy as np
from vllm.v1.core.sched.scheduler import Scheduler

from services.rollout.cache_load import CacheLoad, Sequences
from services.rollout.engine import RunningSample, SampleRequest

SEEN_WAITING: Final = 64
"""Waiting samples that are told of."""


def cache_load(
    scheduler: Scheduler, samples: Mapping[str, RunningSample], backlog: Iterable[SampleRequest]
) -> CacheLoad:
    """`samples` has every request of the scheduler; `backlog` comes after what waits in the scheduler."""
    block, running = scheduler.block_size, [samples[request.request_id] for request in scheduler.running]
    computed = np.array([request.num_computed_tokens for request in scheduler.running], np.int64)
    holders = Counter(id(sample.request.prompt_token_ids) for sample in running)
    held = [_held(sample, block, share=1 / holders[id(sample.request.prompt_token_ids)]) for sample in running]
    waiting: list[RunningSample] = []
    held_then: list[float] = []
    queued = (samples[request.request_id] for request in scheduler.waiting)
    for sample in islice(chain(queued, (samples[request.sample_id] for request in backlog)), SEEN_WAITING):
        prompt = id(sample.request.prompt_token_ids)
        waiting.append(sample)
        held_then.append(_held(sample, block, share=0.0 if holders[prompt] else 1.0))
        holders[prompt] += 1
    in_cache = _sequences(running, held)
    tokens = in_cache.generated_tokens + [len(sample.request.prompt_token_ids) for sample in running]
    # A prompt may be computed in part; the newest token is computed by the next step.
    share_computed = np.minimum(1.0, (computed + 1) / tokens) if running else np.zeros(0)
    return CacheLoad(
        use=scheduler.kv_cache_manager.usage,
        computed_tokens=float((in_cache.held_tokens * share_computed).sum()),
        running=in_cache,
        waiting=_sequences(waiting, held_then),
    )


def _held(sample: RunningSample, block: int, *, share: float) -> float:
    """Tokens in whole blocks, of which the full blocks of the prompt count by `share`."""
    prompt = len(sample.request.prompt_token_ids)
    shared = prompt // block
    return block * (-(-(prompt + len(sample.token_ids)) // block) - shared * (1.0 - share))


def _sequences(samples: list[RunningSample], held_tokens: list[float]) -> Sequences:
    return Sequences(
        held_tokens=np.array(held_tokens, np.float64),
        generated_tokens=np.array([len(sample.token_ids) for sample in samples], np.int64),
        max_tokens=np.array([sample.request.max_tokens for sample in samples], np.int64),
    )
