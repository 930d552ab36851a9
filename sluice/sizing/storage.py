"""Host memory, disk and network: what a run keeps and sends beside the GPUs' memory."""

from sluice.config.schema import Config
from sluice.shared_memory import needed_bytes
from sluice.sizing.learner import BYTES, ranks_of, state_bytes, trained_parameters
from sluice.sizing.memory_parts import Estimate, Part, kept
from sluice.sizing.model_shape import ModelShape
from sluice.weights.adapters import pushes_adapters

_FLOAT32 = 4
_CHECKPOINT_BYTES = 12
"""A trained parameter in a checkpoint: float32 weight and AdamW's two moments."""

_SNAPSHOTS = 2
"""The published version, and the next one while it is packed. The delta between two has a snapshot more, the former one."""


def push_bytes(shape: ModelShape, config: Config) -> int:
    """Bytes that one rollout receives with one version: the whole model, or the adapters alone in float32."""
    if pushes_adapters(config):
        return _FLOAT32 * trained_parameters(shape, config)
    return BYTES[config.model.dtype] * shape.parameters


def loading_memory(shape: ModelShape, config: Config) -> Estimate:
    """Memory of one of the learner's machines at its start: its ranks' shards in float32."""
    here = config.launch.learner_nproc_per_node
    part = Part(
        name=f"{here} of {ranks_of(config)} shards in float32",
        size_bytes=_FLOAT32 * shape.parameters * here // ranks_of(config),
        knob="launch.learner_nproc_per_node, on more machines",
    )
    return Estimate(title="host memory, each machine of the learner, at its start", parts=(part,))


def learner_host_memory(shape: ModelShape, config: Config) -> Estimate:
    """Memory of the machine with rank 0 while it trains, beyond what the ranks' GPUs hold."""
    here, learner = config.launch.learner_nproc_per_node, config.learner
    states = sum(state_bytes(shape, config).values()) * here // ranks_of(config) if learner.cpu_offload else 0
    delta = config.weights.delta_share
    staged = _checkpoint_bytes(shape, config) * here // ranks_of(config) if learner.async_checkpoint else 0
    return Estimate(
        title="host memory, machine of rank 0, while it trains",
        parts=kept(
            (
                Part(
                    name="snapshots of the weights: published, and next",
                    size_bytes=_SNAPSHOTS * push_bytes(shape, config),
                    knob="model.dtype",
                ),
                Part(
                    name="the former snapshot, while its delta is made, and deltas",
                    size_bytes=round((1 + 2 * delta) * push_bytes(shape, config)) if delta else 0,
                    knob="weights.encoding: dense",
                ),
                Part(name="copy of a checkpoint", size_bytes=staged, knob="learner.async_checkpoint: false"),
                Part(name="weights, moments and gradients", size_bytes=states, knob="learner.cpu_offload: false"),
            )
        ),
    )


def rollout_host_memory(shape: ModelShape, config: Config) -> Estimate:
    """Memory of the machine of one rollout, beyond what its GPUs hold, while new weights arrive."""
    model, arriving = BYTES[config.model.dtype] * shape.parameters, push_bytes(shape, config)
    delta = config.weights.delta_share
    return Estimate(
        title="host memory, each rollout",
        parts=kept(
            (
                Part(name="the version that arrives", size_bytes=arriving, knob="model.dtype"),
                Part(
                    name="the version held, as the base of a delta, and the delta",
                    size_bytes=round((1 + delta) * arriving) if delta else 0,
                    knob="weights.encoding: dense",
                ),
                Part(
                    name="the version merged with its adapters",
                    size_bytes=model if pushes_adapters(config) else 0,
                    knob="weights.lora: merged",
                ),
                Part(
                    name="/dev/shm, for messages of the engine's processes",
                    size_bytes=needed_bytes(config),
                    knob="rollout.tensor_parallel_size: 1",
                ),
            )
        ),
    )


def disk(shape: ModelShape, config: Config) -> Estimate:
    """The run directory at most, with every batch at its largest."""
    learner, run = config.learner, config.run
    checkpoints = min(learner.keep_checkpoints + 1, -(-run.total_steps // learner.checkpoint_every_steps))
    batches = min(run.total_steps, learner.keep_checkpoints * learner.checkpoint_every_steps + 1)
    exports = run.total_steps // learner.export_every_steps if learner.export_every_steps else 0
    folder = BYTES[config.model.dtype] * shape.parameters
    return Estimate(
        title="disk, the run directory at most",
        parts=kept(
            (
                Part(
                    name=f"{checkpoints} checkpoints, one of them being written",
                    size_bytes=checkpoints * _checkpoint_bytes(shape, config),
                    knob="learner.keep_checkpoints",
                ),
                Part(
                    name=f"{batches} batches since the oldest checkpoint, at their largest",
                    size_bytes=batches * config.largest_batch_bytes,
                    knob="learner.checkpoint_every_steps",
                ),
                Part(name="RUN/model at the end", size_bytes=folder),
                Part(
                    name=f"{exports} exported folders", size_bytes=exports * folder, knob="learner.export_every_steps"
                ),
                Part(
                    name="weights on their way (weights.backend: file)",
                    size_bytes=_SNAPSHOTS * push_bytes(shape, config) if config.weights.backend == "file" else 0,
                    knob="weights.backend",
                ),
            )
        ),
    )


def _checkpoint_bytes(shape: ModelShape, config: Config) -> int:
    return _CHECKPOINT_BYTES * trained_parameters(shape, config)
