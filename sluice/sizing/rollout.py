"""The memory of one GPU of a rollout: weights, one engine step, and the KV cache, which gets the rest of vLLM's share.

Weights and KV heads are shared out over `rollout.tensor_parallel_size` GPUs. Windows of attention are not counted on: the
figures hold for a cache that keeps every token, so a model with windows fits more. CUDA graphs and the process's own memory
are not counted.
"""

from dataclasses import dataclass

from sluice.config.derived import longest_sequence_tokens
from sluice.config.schema import Config
from sluice.sizing.learner import BYTES
from sluice.sizing.memory_parts import Estimate, Part
from sluice.sizing.model_shape import ModelShape

STEP_TOKENS = 16_384
"""Prompt tokens that one engine step of vLLM takes on a GPU of 70 GB and more (`max_num_batched_tokens`); on others half."""

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class KvCache:
    """The cache of one GPU."""

    bytes_a_token: int
    sequence_tokens: int
    """Tokens of the longest sequence."""
    room_bytes: int | None
    """What is left for the cache; None where the GPU's memory is not known."""

    @property
    def sequence_bytes(self) -> int:
        """The cache of one sequence of full length."""
        return self.bytes_a_token * self.sequence_tokens

    @property
    def sequences(self) -> float | None:
        """How many sequences of full length fit."""
        return None if self.room_bytes is None else max(0, self.room_bytes) / self.sequence_bytes


def gpu_memory(shape: ModelShape, config: Config) -> Estimate:
    """One GPU's memory without the KV cache."""
    parallel, b = config.rollout.tensor_parallel_size, BYTES[config.model.dtype]
    widest = max(
        layer.experts.chosen * layer.experts.intermediate if layer.experts else shape.intermediate
        for layer in shape.layers
    )
    logits = 2 * _FLOAT32 * config.rollout.most_samples * shape.vocabulary  # and their log-softmax
    step = STEP_TOKENS * b * (4 * shape.hidden + 3 * -(-widest // parallel))
    share = "" if parallel == 1 else f", 1/{parallel}"
    return Estimate(
        title=f"rollout, each of {parallel} GPUs" if parallel > 1 else "rollout, its GPU",
        parts=(
            Part(
                name=f"weights, {config.model.dtype}{share}",
                size_bytes=b * -(-shape.parameters // parallel),
                knob="rollout.tensor_parallel_size",
            ),
            Part(
                name=f"logits of {config.rollout.most_samples} sequences, and one step of {STEP_TOKENS} tokens",
                size_bytes=logits + step,
                knob="rollout.max_num_seqs",
            ),
        ),
    )


def most_bytes(shape: ModelShape, config: Config, *, gpu_bytes: int) -> int:
    """What one rollout takes of a GPU that has `gpu_bytes`."""
    if (cache := config.rollout.kv_cache_bytes) is not None:
        return gpu_memory(shape, config).total_bytes + cache
    return round(config.rollout.gpu_memory_utilization * gpu_bytes)


def kv_cache(shape: ModelShape, config: Config, *, gpu_bytes: int | None) -> KvCache:
    """The KV cache of one GPU that has `gpu_bytes`: `rollout.kv_cache_bytes`, or what `gpu_memory_utilization` leaves."""
    parallel, b = config.rollout.tensor_parallel_size, BYTES[config.model.dtype]
    room = config.rollout.kv_cache_bytes
    if room is None and gpu_bytes is not None:
        room = round(gpu_bytes * config.rollout.gpu_memory_utilization) - gpu_memory(shape, config).total_bytes
    return KvCache(
        bytes_a_token=b * shape.kv_elements_a_token(parallel),
        sequence_tokens=longest_sequence_tokens(config),
        room_bytes=room,
    )
