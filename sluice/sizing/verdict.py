"""Whether a recipe's learner and rollouts fit GPUs of a known size; what cannot fit is one line with the way out."""

from collections.abc import Iterator

from sluice.config.schema import Config
from sluice.sizing.learner import rank_memory, ranks_of
from sluice.sizing.memory_parts import Estimate, gigabytes
from sluice.sizing.model_shape import ModelShape
from sluice.sizing.rollout import gpu_memory, kv_cache, most_bytes

LEFT_FREE_BYTES = 3_000_000_000
"""Chosen: what a CUDA context, NCCL's buffers, CUDA graphs and fragments of the allocator take of a GPU; none is counted."""


def refusals(shape: ModelShape, config: Config, *, gpu_bytes: int, shared: bool) -> Iterator[str]:
    """What cannot fit, a line each; nothing where everything may fit.

    shared: whether a rank and a rollout compute on one GPU (sluice/gpus/gpu_plan.py).
    """
    rank, rollout = rank_memory(shape, config), gpu_memory(shape, config)
    if rank.total_bytes > gpu_bytes:
        yield _too_much("a rank of the learner", rank, gpu_bytes)
    if config.rollout.engine != "vllm":
        return
    takes, cache = most_bytes(shape, config, gpu_bytes=gpu_bytes), config.rollout.kv_cache_bytes
    share = takes if cache is None else gpu_bytes - cache
    if rollout.total_bytes > share:
        what = "rollout.gpu_memory_utilization of a GPU" if cache is None else "a GPU without rollout.kv_cache_bytes"
        yield _too_much("a GPU of a rollout", rollout, share, room=f"{gigabytes(max(0, share))}, {what}")
    elif (fit := kv_cache(shape, config, gpu_bytes=gpu_bytes)).sequences is not None and (fit.sequences or 0) < 1:
        yield (
            f"--gpu-memory: the KV cache has room for {gigabytes(max(0, fit.room_bytes or 0))}, and one sequence of "
            f"{fit.sequence_tokens:,} tokens needs {gigabytes(fit.sequence_bytes)}; raise rollout.tensor_parallel_size, "
            "or lower data.max_response_length"
        )
    if shared and rank.total_bytes + takes > gpu_bytes:
        yield (
            f"--gpus: must be more than the learner's ranks ({ranks_of(config)}), so that rollouts have GPUs of their own: a "
            f"rank and a rollout do not fit one GPU together ({gigabytes(rank.total_bytes)} + {gigabytes(takes)} of "
            f"{gigabytes(gpu_bytes)}); or change launch.shared_gpu_fraction"
        )


def cautions(shape: ModelShape, config: Config, *, gpu_bytes: int) -> Iterator[str]:
    """What may fit and is close, for people."""
    total = rank_memory(shape, config).total_bytes
    if gpu_bytes - LEFT_FREE_BYTES < total <= gpu_bytes:
        yield (
            f"a rank of the learner leaves {gigabytes(gpu_bytes - total)} of its GPU; a CUDA context, NCCL and the "
            f"allocator are not counted, so leave {gigabytes(LEFT_FREE_BYTES)}"
        )
    if config.rollout.engine != "vllm":
        return
    cache = kv_cache(shape, config, gpu_bytes=gpu_bytes)
    number = config.rollout.max_num_seqs
    if cache.sequences is not None and number != "auto" and 1 <= cache.sequences < number:
        yield (
            f"rollout.max_num_seqs is {number}, and {int(cache.sequences)} sequences of full length "
            "fit the KV cache; when more grow long, vLLM preempts some and computes them again (rollout/preemptions); auto "
            "runs as many as fit"
        )


def _too_much(who: str, estimate: Estimate, limit_bytes: float, *, room: str = "") -> str:
    most = estimate.largest
    knob = f"; lower it: {most.knob}" if most.knob else ""
    return (
        f"--gpu-memory: {who} needs {gigabytes(estimate.total_bytes)} and has {room or gigabytes(limit_bytes)}; most of it: "
        f"{most.name}, {gigabytes(most.size_bytes)}{knob}"
    )
