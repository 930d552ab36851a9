"""The estimates as a page for people: a table a memory, what dominates it, and the setting that lowers it."""

from collections.abc import Iterator

from sluice.config.schema import Config
from sluice.sizing.learner import rank_memory
from sluice.sizing.memory_parts import Estimate, gigabytes
from sluice.sizing.model_shape import ModelShape
from sluice.sizing.rollout import gpu_memory, kv_cache
from sluice.sizing.storage import disk, learner_host_memory, loading_memory, push_bytes, rollout_host_memory

_NAME, _SIZE = 62, 9
"""Widths of the first two columns."""


def page(shape: ModelShape, config: Config, *, gpu_bytes: int | None) -> list[str]:
    """The page, a line an item."""
    active = f", {shape.active_parameters:,} of them active" if any(layer.experts for layer in shape.layers) else ""
    lines = [f"memory, counted from config.json: {shape.model_type}, {shape.parameters:,} parameters{active}"]
    lines += ["", *_table(rank_memory(shape, config), limit_bytes=gpu_bytes)]
    if config.rollout.engine == "vllm":
        share = None if gpu_bytes is None else _without_cache(config, gpu_bytes)
        lines += ["", *_table(gpu_memory(shape, config), limit_bytes=share), *_cache(shape, config, gpu_bytes)]
    for estimate in (
        loading_memory(shape, config),
        learner_host_memory(shape, config),
        rollout_host_memory(shape, config),
        disk(shape, config),
    ):
        lines += ["", *_table(estimate, limit_bytes=None)]
    lines += ["", *_wire(shape, config)]
    return lines


def _without_cache(config: Config, gpu_bytes: int) -> int:
    """What a rollout has of a GPU for all but a KV cache of fixed size."""
    if (cache := config.rollout.kv_cache_bytes) is not None:
        return max(0, gpu_bytes - cache)
    return round(config.rollout.gpu_memory_utilization * gpu_bytes)


def _table(estimate: Estimate, *, limit_bytes: int | None) -> Iterator[str]:
    yield estimate.title
    for part in estimate.parts:
        yield f"  {part.name:<{_NAME}} {gigabytes(part.size_bytes):>{_SIZE}}  {part.knob}".rstrip()
    of = "" if limit_bytes is None else f"  of {gigabytes(limit_bytes)}"
    if len(estimate.parts) > 1:
        yield f"  {'together':<{_NAME}} {gigabytes(estimate.total_bytes):>{_SIZE}}{of}"
        most = estimate.largest
        share = round(100 * most.size_bytes / max(1, estimate.total_bytes))
        knob = f"; lower it: {most.knob}" if most.knob else ""
        yield f"  most: {most.name} ({share} %){knob}"


def _cache(shape: ModelShape, config: Config, gpu_bytes: int | None) -> Iterator[str]:
    cache = kv_cache(shape, config, gpu_bytes=gpu_bytes)
    yield (
        f"  KV cache: {cache.bytes_a_token:,} bytes a token on each GPU, {gigabytes(cache.sequence_bytes)} for a sequence of "
        f"{cache.sequence_tokens:,} tokens"
    )
    if cache.sequences is not None and cache.room_bytes is not None:
        yield (
            f"  KV cache: room for {gigabytes(max(0, cache.room_bytes))}: {int(cache.sequences):,} sequences of full length "
            f"at once (rollout.max_num_seqs {config.rollout.max_num_seqs})"
        )


def _wire(shape: ModelShape, config: Config) -> Iterator[str]:
    rollouts = config.launch.most_rollouts
    size = push_bytes(shape, config)
    yield "network, a step"
    yield f"  {'one version to one rollout':<{_NAME}} {gigabytes(size):>{_SIZE}}  model.dtype, weights.lora"
    if rollouts > 1:
        yield f"  {f'to {rollouts} rollouts':<{_NAME}} {gigabytes(rollouts * size):>{_SIZE}}  launch.rollout_replicas"
