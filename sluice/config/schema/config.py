"""The whole configuration of a run: the sections, numbers that follow from several sections, and combinations refused."""

from collections.abc import Iterator

from pydantic import Field

from sluice.config.divisors import divisors
from sluice.config.exact_dapo import departures
from sluice.config.schema.algorithm import AlgorithmConfig
from sluice.config.schema.coordinator import CoordinatorConfig
from sluice.config.schema.data import DataConfig
from sluice.config.schema.environments import EnvironmentConfig
from sluice.config.schema.eval import EvalConfig
from sluice.config.schema.kubernetes import KubernetesConfig
from sluice.config.schema.launch import LaunchConfig
from sluice.config.schema.learner import LearnerConfig
from sluice.config.schema.model import ModelConfig
from sluice.config.schema.network import NetworkConfig
from sluice.config.schema.reward import RewardConfig
from sluice.config.schema.rollout import RolloutConfig
from sluice.config.schema.run import RunConfig
from sluice.config.schema.section import Section
from sluice.config.schema.slurm import SlurmConfig
from sluice.config.schema.telemetry import TelemetryConfig
from sluice.config.schema.weights import WeightsConfig
from sluice.limits import MAX_MESSAGE_BYTES, NAME_CHARACTERS

PAYLOAD_BYTES_A_TOKEN = 10
"""Id, log-probability and text under zstd. Measured: 8.5 for ids as frequent as words (Zipf), 9.9 for uniform ids."""

_MESSAGE_BYTES_A_TOKEN = 8
"""An int32 id and a float32 log-probability, uncompressed, as in a message."""


class Config(Section):
    """A run."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    reward: RewardConfig = RewardConfig()
    environments: dict[str, EnvironmentConfig] = Field(
        default_factory=dict, description="name -> environment, {environment, settings, network, episodes, workers}"
    )
    learner: LearnerConfig = LearnerConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    weights: WeightsConfig = WeightsConfig()
    eval: EvalConfig = EvalConfig()
    launch: LaunchConfig = LaunchConfig()
    network: NetworkConfig = NetworkConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def gen_batch_size(self) -> int:
        """Most groups in flight while a batch is unfilled (verl's data.gen_batch_size)."""
        return self.data.gen_batch_size or self.data.train_batch_size

    @property
    def mini_batch_size(self) -> int:
        """Groups an optimizer update."""
        return self.learner.mini_batch_size or self.data.train_batch_size

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence: prompt and completion at their limits, or an episode at its limit."""
        data = self.data
        if not self.environments:
            return data.max_prompt_length + data.max_response_length
        return data.max_episode_tokens or data.max_prompt_length + 2 * data.max_response_length

    @property
    def learner_ranks(self) -> int:
        """Ranks of the learner on all of its machines."""
        return self.launch.learner_nnodes * self.launch.learner_nproc_per_node

    @property
    def gpus_a_rollout(self) -> int:
        """GPUs that one rollout computes on, where there are any: the transformers engine knows one device."""
        return self.rollout.tensor_parallel_size if self.rollout.engine == "vllm" else 1

    @property
    def partial_after(self) -> int | None:
        """Verdicts on one batch after which the batch is trained although the batch is not full; None: never."""
        filters = self.algorithm.filter_groups
        return self.gen_batch_size * filters.max_num_gen_batches if filters.on_starvation == "train_partial" else None

    @property
    def largest_group_bytes(self) -> int:
        """About the compressed payload of a group whose completions all have max_response_length."""
        return self.rollout.n * self.data.max_response_length * PAYLOAD_BYTES_A_TOKEN

    @property
    def largest_batch_bytes(self) -> int:
        """About the compressed payload of a batch of the largest groups."""
        return self.data.train_batch_size * self.largest_group_bytes

    @property
    def departures(self) -> list[str]:
        """The settings that depart from the paper's algorithm, each as `algorithm.loss_mode: gspo`."""
        return departures(self)

    @property
    def exact_dapo(self) -> bool:
        """Whether no setting departs from the paper's algorithm."""
        return not self.departures

    def problems(self) -> Iterator[str]:
        """Refuses combinations across sections; a section's own refusals stand in the section's file."""
        yield from self._problems_of_sizes()
        yield from self._problems_of_sets()
        yield from self._problems_of_environments()
        yield from self._problems_of_policies()
        yield from self._problems_of_refills()
        yield from self._problems_of_bytes()
        engine = self.launch.engine
        yield from self.network.problems_here() if engine == "local" else self.network.problems_on_a_cluster(engine)

    def _problems_of_sizes(self) -> Iterator[str]:
        data, buffer = self.data, self.reward.overlong_buffer
        if self.algorithm.filter_groups.enable and self.rollout.n < 2:
            yield (
                "rollout.n: must be >= 2 while algorithm.filter_groups.enable is true, got "
                f"{self.rollout.n}; a group of one never has signal"
            )
        if data.sampler == "difficulty":
            yield from self._problems_of_difficulty()
        if buffer.enable and buffer.len >= data.max_response_length:
            yield (
                "reward.overlong_buffer.len: must be < data.max_response_length "
                f"({data.max_response_length}), got {buffer.len}"
            )
        if self.mini_batch_size > data.train_batch_size:
            yield (
                f"learner.mini_batch_size: must be <= data.train_batch_size ({data.train_batch_size}), "
                f"got {self.mini_batch_size}"
            )
        if self.launch.most_rollouts > self.launch.rollouts and not self.coordinator.max_staleness:
            yield (
                "launch.rollout_replicas: must be a number while coordinator.max_staleness is 0, got {min, max}; rollouts and "
                "learner wait for each other then, whatever their number"
            )
        if self.learner_ranks % (size := self.learner.context_parallel_size):
            choices = ", ".join(map(str, divisors(self.learner_ranks)))
            yield (
                "learner.context_parallel_size: must divide the learner's ranks (launch.learner_nproc_per_node x "
                f"launch.learner_nnodes = {self.learner_ranks}), got {size}; it may be {choices}"
            )
        if (least := self.algorithm.min_group_size) and not 2 <= least <= self.rollout.n:
            yield (
                f"algorithm.min_group_size: must be 0 (off) or from 2 to rollout.n ({self.rollout.n}), got {least}; "
                "a group of one has no advantage"
            )

    def _problems_of_difficulty(self) -> Iterator[str]:
        if self.rollout.n < 2:
            yield (
                f"data.sampler: difficulty asks how likely rollout.n samples are to differ, and rollout.n is {self.rollout.n}; "
                "set rollout.n: 2 or more, or data.sampler: shuffle"
            )
        filters = self.algorithm.filter_groups
        if filters.enable and filters.metric != "acc":
            yield (
                "data.sampler: difficulty predicts whether samples differ in acc, and algorithm.filter_groups.metric is "
                f"{filters.metric}; set that to acc, or data.sampler: shuffle"
            )

    def _problems_of_sets(self) -> Iterator[str]:
        # A reasoning-gym task holds out an eighth of its prompts by itself.
        trained = {name for name in self.data.train_files if not name.startswith("reasoning-gym:")}
        for name, one in self.eval.sets.items():
            if shared := sorted(trained & set(one.files)):
                yield f"eval.sets.{name}.files: must not share files with data.train_files, both name {shared}"

    def _problems_of_environments(self) -> Iterator[str]:
        data = self.data
        for name in self.environments:
            if not name.strip() or len(name) > NAME_CHARACTERS or any(character < " " for character in name):
                yield f"environments: a name must have 1 to {NAME_CHARACTERS} characters on one line, got {name[:80]!r}"
        if data.environment and data.environment not in self.environments:
            known = ", ".join(sorted(self.environments)) or "none"
            yield f"data.environment: must be one of environments ({known}), got {data.environment!r}"
        most, answer = data.max_episode_tokens, data.max_prompt_length + data.max_response_length
        if self.environments and most is not None and most <= answer:
            yield (
                "data.max_episode_tokens: must be more than data.max_prompt_length + data.max_response_length "
                f"({answer}), or nothing that an environment answers fits between two turns; got {most}"
            )
        if self.environments and self.rollout.max_turns > 1 and data.max_response_length < 2:
            yield f"data.max_response_length: must be >= 2 with environments, a token a turn, got {data.max_response_length}"

    def _problems_of_policies(self) -> Iterator[str]:
        algorithm = self.algorithm
        recomputed_alone = algorithm.proximal == "recompute" and algorithm.rollout_correction.rollout_is == "none"
        if recomputed_alone and self.coordinator.max_staleness > 0:
            yield (
                "algorithm.proximal: recompute alone ignores who sampled a token, which collapses on stale ones: set "
                "algorithm.rollout_correction.rollout_is: token, or coordinator.max_staleness: 0"
            )
        if algorithm.adv_estimator == "maxrl" and self.reward.overlong_buffer.enable:
            yield (
                "reward.overlong_buffer.enable: must be false with algorithm.adv_estimator: maxrl, which reads right or wrong "
                "and no shaped reward; set algorithm.overlong_filtering: true to leave truncated samples out"
            )
        if self.weights.lora == "adapter" and not self.model.lora_rank:
            yield "weights.lora: adapter needs adapters; set model.lora_rank, or weights.lora: merged"

    def _problems_of_refills(self) -> Iterator[str]:
        confidence = self.coordinator.refill_confidence
        if confidence < 1 and self.coordinator.max_staleness == 0:
            yield (
                "coordinator.refill_confidence: must be 1 while coordinator.max_staleness is 0, got "
                f"{confidence:g}; data.gen_batch_size says there how many groups start ahead"
            )
        if confidence < 1 and not self.algorithm.filter_groups.enable:
            yield (
                "coordinator.refill_confidence: must be 1 while algorithm.filter_groups.enable is false, got "
                f"{confidence:g}; no group is rejected, so there is nothing to refill"
            )

    def _problems_of_bytes(self) -> Iterator[str]:
        if self.largest_batch_bytes > self.coordinator.queue_max_bytes:
            yield (
                "coordinator.queue_max_bytes: must hold at least the largest possible batch, "
                f"{self.largest_batch_bytes} bytes, got {self.coordinator.queue_max_bytes}; the queue would not keep to it"
            )
        message = self.rollout.n * self.data.max_response_length * _MESSAGE_BYTES_A_TOKEN
        if message > MAX_MESSAGE_BYTES:
            yield (
                f"data.max_response_length: {self.rollout.n} samples (rollout.n) of {self.data.max_response_length} tokens "
                f"make a group of {message} bytes, and a group must fit one message of {MAX_MESSAGE_BYTES}; lower one of both"
            )
