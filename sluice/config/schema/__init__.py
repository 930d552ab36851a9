"""The one schema of a run, a file a section: the keys under `learner:` in a recipe are in learner.py.

Strict: unknown keys and impossible values are refused before anything heavy is imported. Key names are verl's where verl
has the key; units stand in names. `sluice.config.load` reads files into this schema.
"""

from sluice.config.schema.algorithm import AlgorithmConfig, FilterGroupsConfig
from sluice.config.schema.config import PAYLOAD_BYTES_A_TOKEN, Config
from sluice.config.schema.coordinator import CoordinatorConfig
from sluice.config.schema.data import DataConfig
from sluice.config.schema.environments import EnvironmentConfig
from sluice.config.schema.eval import EvalConfig, EvalSetConfig
from sluice.config.schema.kubernetes import KubernetesConfig
from sluice.config.schema.launch import LaunchConfig
from sluice.config.schema.learner import LearnerConfig
from sluice.config.schema.model import ModelConfig
from sluice.config.schema.network import NetworkConfig
from sluice.config.schema.reward import GraderConfig, GraderList, OverlongBufferConfig, RewardConfig
from sluice.config.schema.rollout import RolloutConfig
from sluice.config.schema.rollout_correction import RolloutCorrectionConfig
from sluice.config.schema.run import RunConfig
from sluice.config.schema.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from sluice.config.schema.slurm import SlurmConfig
from sluice.config.schema.telemetry import TelemetryConfig
from sluice.config.schema.weights import WeightsConfig

__all__ = [
    "PAYLOAD_BYTES_A_TOKEN",
    "AlgorithmConfig",
    "Config",
    "CoordinatorConfig",
    "DataConfig",
    "EnvironmentConfig",
    "EvalConfig",
    "EvalSetConfig",
    "FilterGroupsConfig",
    "GraderConfig",
    "GraderList",
    "KubernetesConfig",
    "LaunchConfig",
    "LearnerConfig",
    "ModelConfig",
    "NetworkConfig",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OverlongBufferConfig",
    "PositiveFloat",
    "PositiveInt",
    "RewardConfig",
    "RolloutConfig",
    "RolloutCorrectionConfig",
    "RunConfig",
    "Section",
    "SlurmConfig",
    "TelemetryConfig",
    "WeightsConfig",
]
