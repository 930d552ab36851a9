"""Combinations of keys of several sections that a run refuses."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sluice.config.divisors import divisors
from sluice.limits import MAX_MESSAGE_BYTES, NAME_CHARACTERS

if TYPE_CHECKING:
    from sluice.config.schema.config import Config

_MESSAGE_BYTES_A_TOKEN = 8
"""An int32 id and a float32 log-probability, uncompressed, as in a message."""


def problems_across(config: "Config") -> Iterator[str]:
    """Which keys contradict each other, a line each: `section.key: the rule, the value; the fix`."""
    yield from _sizes(config)
    yield from _sets(config)
    yield from _environments(config)
    yield from _policies(config)
    yield from _refills(config)
    yield from _bytes(config)
    engine = config.launch.engine
    yield from config.network.problems_here() if engine == "local" else config.network.problems_on_a_cluster(engine)


def _sizes(config: "Config") -> Iterator[str]:
    data, buffer = config.data, config.reward.overlong_buffer
    if config.algorithm.filter_groups.enable and config.rollout.n < 2:
        yield (
            "rollout.n: must be >= 2 while algorithm.filter_groups.enable is true, got "
            f"{config.rollout.n}; a group of one never has signal"
        )
    if data.sampler == "difficulty":
        yield from _difficulty(config)
    if buffer.enable and buffer.len >= data.max_response_length:
        yield (
            "reward.overlong_buffer.len: must be < data.max_response_length "
            f"({data.max_response_length}), got {buffer.len}"
        )
    if config.mini_batch_size > data.train_batch_size:
        yield (
            f"learner.mini_batch_size: must be <= data.train_batch_size ({data.train_batch_size}), "
            f"got {config.mini_batch_size}"
        )
    if config.launch.most_rollouts > config.launch.rollouts and not config.coordinator.max_staleness:
        yield (
            "launch.rollout_replicas: must be a number while coordinator.max_staleness is 0, got {min, max}; rollouts and "
            "learner wait for each other then, whatever their number"
        )
    if config.learner_ranks % (size := config.learner.context_parallel_size):
        choices = ", ".join(map(str, divisors(config.learner_ranks)))
        yield (
            "learner.context_parallel_size: must divide the learner's ranks (launch.learner_nproc_per_node x "
            f"launch.learner_nnodes = {config.learner_ranks}), got {size}; it may be {choices}"
        )
    if (least := config.algorithm.min_group_size) and not 2 <= least <= config.rollout.n:
        yield (
            f"algorithm.min_group_size: must be 0 (off) or from 2 to rollout.n ({config.rollout.n}), got {least}; "
            "a group of one has no advantage"
        )


def _difficulty(config: "Config") -> Iterator[str]:
    if config.rollout.n < 2:
        yield (
            f"data.sampler: difficulty asks how likely rollout.n samples are to differ, and rollout.n is {config.rollout.n}; "
            "set rollout.n: 2 or more, or data.sampler: shuffle"
        )
    filters = config.algorithm.filter_groups
    if filters.enable and filters.metric != "acc":
        yield (
            "data.sampler: difficulty predicts whether samples differ in acc, and algorithm.filter_groups.metric is "
            f"{filters.metric}; set that to acc, or data.sampler: shuffle"
        )


def _sets(config: "Config") -> Iterator[str]:
    # A reasoning-gym task holds out an eighth of its prompts by itself.
    trained = {name for name in config.data.train_files if not name.startswith("reasoning-gym:")}
    for name, one in config.eval.sets.items():
        if shared := sorted(trained & set(one.files)):
            yield f"eval.sets.{name}.files: must not share files with data.train_files, both name {shared}"


def _environments(config: "Config") -> Iterator[str]:
    data = config.data
    for name in config.environments:
        if not name.strip() or len(name) > NAME_CHARACTERS or any(character < " " for character in name):
            yield f"environments: a name must have 1 to {NAME_CHARACTERS} characters on one line, got {name[:80]!r}"
    if data.environment and data.environment not in config.environments:
        known = ", ".join(sorted(config.environments)) or "none"
        yield f"data.environment: must be one of environments ({known}), got {data.environment!r}"
    most, answer = data.max_episode_tokens, data.max_prompt_length + data.max_response_length
    if config.environments and most is not None and most <= answer:
        yield (
            "data.max_episode_tokens: must be more than data.max_prompt_length + data.max_response_length "
            f"({answer}), or nothing that an environment answers fits between two turns; got {most}"
        )
    if config.environments and config.rollout.max_turns > 1 and data.max_response_length < 2:
        yield f"data.max_response_length: must be >= 2 with environments, a token a turn, got {data.max_response_length}"


def _policies(config: "Config") -> Iterator[str]:
    algorithm = config.algorithm
    recomputed_alone = algorithm.proximal == "recompute" and algorithm.rollout_correction.rollout_is == "none"
    if recomputed_alone and config.coordinator.max_staleness > 0:
        yield (
            "algorithm.proximal: recompute alone ignores who sampled a token, which collapses on stale ones: set "
            "algorithm.rollout_correction.rollout_is: token, or coordinator.max_staleness: 0"
        )
    if algorithm.adv_estimator == "maxrl" and config.reward.overlong_buffer.enable:
        yield (
            "reward.overlong_buffer.enable: must be false with algorithm.adv_estimator: maxrl, which reads right or wrong "
            "and no shaped reward; set algorithm.overlong_filtering: true to leave truncated samples out"
        )
    if config.weights.lora == "adapter" and not config.model.lora_rank:
        yield "weights.lora: adapter needs adapters; set model.lora_rank, or weights.lora: merged"


def _refills(config: "Config") -> Iterator[str]:
    confidence = config.coordinator.refill_confidence
    if confidence < 1 and config.coordinator.max_staleness == 0:
        yield (
            "coordinator.refill_confidence: must be 1 while coordinator.max_staleness is 0, got "
            f"{confidence:g}; data.gen_batch_size says there how many groups start ahead"
        )
    if confidence < 1 and not config.algorithm.filter_groups.enable:
        yield (
            "coordinator.refill_confidence: must be 1 while algorithm.filter_groups.enable is false, got "
            f"{confidence:g}; no group is rejected, so there is nothing to refill"
        )


def _bytes(config: "Config") -> Iterator[str]:
    if config.largest_batch_bytes > config.coordinator.queue_max_bytes:
        yield (
            "coordinator.queue_max_bytes: must hold at least the largest possible batch, "
            f"{config.largest_batch_bytes} bytes, got {config.coordinator.queue_max_bytes}; the queue would not keep to it"
        )
    message = config.rollout.n * config.data.max_response_length * _MESSAGE_BYTES_A_TOKEN
    if message > MAX_MESSAGE_BYTES:
        yield (
            f"data.max_response_length: {config.rollout.n} samples (rollout.n) of {config.data.max_response_length} tokens "
            f"make a group of {message} bytes, and a group must fit one message of {MAX_MESSAGE_BYTES}; lower one of both"
        )
