"""The whole configuration of a run: the sections, and numbers that follow from several sections."""

from collections.abc import Iterator

from pydantic import Field

from sluice.config.exact_dapo import departures
from sluice.config.schema.algorithm import AlgorithmConfig
from sluice.config.schema.combinations import problems_across
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

PAYLOAD_BYTES_A_TOKEN = 10
"""Id, log-probability and text under zstd. Measured: 8.5 for ids as frequent as words (Zipf), 9.9 for uniform ids."""


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
        yield from problems_across(self)
