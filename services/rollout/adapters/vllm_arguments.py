"""vLLM's engine arguments that depend on the device: memory of the KV cache, tokens of a step, batches in flight.

CUDA's half has not been run; what it hands to vLLM is checked on a CPU (tests/contract/test_engine_arguments.py).
"""

from typing import Any

CPU_KV_CACHE_BYTES = 128 << 20
"""KV cache on a CPU unless `rollout.kv_cache_bytes` says otherwise: enough for the demo's model."""

_CPU_BLOCK_TOKENS = 32
"""KV block length on a CPU; vLLM's default of 128 on a CPU wastes most of a block on short sequences."""

_CPU_STEP_TOKENS = 2048
"""Prompt tokens of one step on a CPU, vLLM's default; more where a single prompt or one token a row needs more."""

_UNCHECKED_SHARE = 0.01
"""`gpu_memory_utilization` beside a given KV cache: vLLM then does not measure, but still refuses to start on a device whose
free memory is below this share, which a learner on the same device has taken."""


def cuda_arguments(*, gpu_memory_utilization: float, enforce_eager: bool, kv_cache_bytes: int | None) -> dict[str, Any]:
    """Arguments for CUDA. The tokens of a step are vLLM's own choice by the device's name and memory.

    With `kv_cache_bytes` the cache is exactly that large, whatever others hold of the device; otherwise vLLM measures and takes
    what `gpu_memory_utilization` of the device leaves, which is only right where nobody else uses the device.
    """
    return {
        "gpu_memory_utilization": gpu_memory_utilization if kv_cache_bytes is None else _UNCHECKED_SHARE,
        "kv_cache_memory_bytes": kv_cache_bytes,
        "enforce_eager": enforce_eager,
        # The other kernels keep experts in an order of their own, into which new weights cannot be loaded.
        "moe_backend": "triton",
    }


def cpu_arguments(needed_step_tokens: int, kv_cache_bytes: int | None) -> dict[str, Any]:
    """Arguments for a CPU; one step takes at least `needed_step_tokens`."""
    return {
        "enforce_eager": True,
        "block_size": _CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": kv_cache_bytes or CPU_KV_CACHE_BYTES,
        # After a partial prefill vLLM rewinds a seeded request's generator, and a CPU generator raises on a rewind.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_CPU_STEP_TOKENS, needed_step_tokens),
    }
