"""The numbers that follow from a configuration: sequences a step, updates a step, the largest age and so on."""

from collections.abc import Iterator

from sluice.config.schema import Config


def derived_table(config: Config) -> list[tuple[str, str, str]]:
    """(name, value, how the value follows), for people to read before a run starts."""
    return [(name, f"{value:,}", how) for name, value, how in (*_step(config), *_flight(config), *_run(config))]


def notes(config: Config) -> list[str]:
    """What is permitted and yet seldom meant, for people to read before a run starts."""
    return [*_notes_of_budget(config), *_notes_of_context(config), *_notes_of_bounds(config)]


_USUAL_BOUNDS = {"gspo": "3e-4 and 4e-4", "dppo_kl": "0.05 and 0.05"}
"""Of losses whose bounds are no ratios of tokens: what their papers took for the lower and the upper one."""


def _notes_of_bounds(config: Config) -> Iterator[str]:
    algorithm = config.algorithm
    usual = _USUAL_BOUNDS.get(algorithm.loss_mode)
    if usual and (algorithm.clip_ratio_low, algorithm.clip_ratio_high) == (0.2, 0.28):
        yield (
            f"algorithm.clip_ratio_low, algorithm.clip_ratio_high: 0.2 and 0.28 are DAPO's; {algorithm.loss_mode} bounds "
            f"something else, and its paper has {usual}"
        )


def _notes_of_budget(config: Config) -> Iterator[str]:
    longest, context = longest_sequence_tokens(config), config.learner.context_parallel_size
    room = config.learner.max_tokens_per_micro_batch * context
    if room < longest:
        times = f" x learner.context_parallel_size ({context}) = {room}" if context > 1 else ""
        yield (
            f"learner.max_tokens_per_micro_batch: {config.learner.max_tokens_per_micro_batch}{times} is below the longest "
            f"sequence, data.max_prompt_length + data.max_response_length = {longest} tokens; a longer sequence is a "
            f"micro-batch of its own, so memory must do for {longest} tokens all the same; learner.context_parallel_size "
            "cuts it up"
        )


def _notes_of_context(config: Config) -> Iterator[str]:
    here, context = config.launch.learner_nproc_per_node, config.learner.context_parallel_size
    if here % context:
        yield (
            f"learner.context_parallel_size: {context} does not divide the {here} ranks of a machine "
            "(launch.learner_nproc_per_node), so ranks of different machines exchange their tokens in every layer"
        )


def updates_per_step(config: Config) -> int:
    """Optimizer updates a step; the last update is smaller where the groups do not divide."""
    return -(-config.data.train_batch_size // config.mini_batch_size)


LOGPROB_CHUNK_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Tokens whose logits exist at once unless the configuration says otherwise, by torch's type of the device. On a CPU 256 need
14 % more time (docs/learner.md); on CUDA four times as many fill the device better (chosen, not measured)."""


def logprob_chunk_tokens(config: Config, *, device_type: str) -> int:
    """`learner.logprob_chunk_tokens`, or its default on a device of this type."""
    return config.learner.logprob_chunk_tokens or LOGPROB_CHUNK_TOKENS[device_type]


def longest_sequence_tokens(config: Config) -> int:
    """Prompt and completion, or an episode, at their limits."""
    return config.longest_sequence


def most_groups_in_flight(config: Config) -> int:
    """Groups that may be generated or scored at once: at most the cap, and at most as many as can be trained in time."""
    if config.coordinator.max_staleness == 0:
        return config.gen_batch_size
    if config.coordinator.refill_confidence < 1:  # rejected groups do not count
        return config.gen_batch_size
    in_time = (config.coordinator.max_staleness + 1) * config.data.train_batch_size
    return min(config.gen_batch_size, in_time)


def most_queued_bytes(config: Config) -> int:
    """Bytes of the payloads of accepted groups that may wait at once.

    At most the payloads of all groups that may be alive; at most the queue's limit plus the groups that a full queue still
    takes, which are the groups in flight and the groups of the next batch.
    """
    alive = (config.coordinator.max_staleness + 1) * config.data.train_batch_size
    if config.coordinator.max_staleness == 0:
        alive = config.gen_batch_size
    elif config.coordinator.refill_confidence < 1:  # all groups in flight may be kept, against the forecast
        alive += config.gen_batch_size
    full = config.coordinator.queue_max_bytes + most_groups_in_flight(config) * config.largest_group_bytes
    return min(alive * config.largest_group_bytes, full)


def _step(config: Config) -> list[tuple[str, int, str]]:
    n, batch, mini = config.rollout.n, config.data.train_batch_size, config.mini_batch_size
    return [
        ("groups per step", batch, "data.train_batch_size"),
        ("sequences per step", batch * n, f"data.train_batch_size x rollout.n = {batch} x {n}"),
        ("groups per optimizer update", mini, "learner.mini_batch_size"),
        ("sequences per optimizer update", mini * n, f"learner.mini_batch_size x rollout.n = {mini} x {n}"),
        (
            "optimizer updates per step",
            updates_per_step(config),
            f"data.train_batch_size / learner.mini_batch_size = {batch} / {mini}, rounded up",
        ),
    ]


def _flight(config: Config) -> list[tuple[str, int, str]]:
    groups, longest = most_groups_in_flight(config), longest_sequence_tokens(config)
    sequences = groups * config.rollout.n
    return [
        (
            "longest sequence, tokens",
            longest,
            _how_long(config),
        ),
        (
            "groups in flight at most",
            groups,
            "data.gen_batch_size"
            if config.coordinator.max_staleness == 0 or config.coordinator.refill_confidence < 1
            else "data.gen_batch_size, and no more than (coordinator.max_staleness + 1) x data.train_batch_size",
        ),
        ("sequences in flight at most", sequences, f"groups in flight x rollout.n = {groups} x {config.rollout.n}"),
        ("tokens in flight at most", sequences * longest, f"sequences in flight x longest = {sequences} x {longest}"),
        (
            "bytes in the queue at most",
            most_queued_bytes(config),
            "groups that can still be trained in time, and no more than coordinator.queue_max_bytes + those in flight; "
            f"{config.largest_group_bytes} bytes a group",
        ),
    ]


def _how_long(config: Config) -> str:
    """How the longest sequence follows from the recipe."""
    data = config.data
    if config.environments and data.max_episode_tokens:
        return "data.max_episode_tokens"
    turns = "2 x " if config.environments else ""
    return (
        f"data.max_prompt_length + {turns}data.max_response_length = "
        f"{data.max_prompt_length} + {turns}{data.max_response_length}"
    )


def _run(config: Config) -> list[tuple[str, int, str]]:
    age, updates, steps = config.coordinator.max_staleness, updates_per_step(config), config.run.total_steps
    return [
        ("maximum age, steps", age, "coordinator.max_staleness"),
        (
            "maximum age, optimizer updates",
            (age + 1) * updates - 1,
            f"age x updates per step + those before it in its own step = {age} x {updates} + {updates - 1}",
        ),
        (
            "warm-up, optimizer updates",
            config.learner.warmup_steps * updates,
            "learner.warmup_steps x updates per step",
        ),
        ("optimizer updates of the run", steps * updates, f"run.total_steps x updates per step = {steps} x {updates}"),
        (
            "sequences of the run",
            steps * config.data.train_batch_size * config.rollout.n,
            "run.total_steps x sequences per step",
        ),
    ]
