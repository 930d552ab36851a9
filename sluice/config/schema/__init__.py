"""The one schema of a run. Strict: unknown keys and impossible values are refused before anything heavy is imported.

Names are those verl's users know; units stand in names. `sluice.config.load` reads files into it.
"""

from sluice.config.schema.config import (
    AlgorithmConfig,
    Config,
    CoordinatorConfig,
    DataConfig,
    EvalConfig,
    FilterGroupsConfig,
    GraderConfig,
    LaunchConfig,
    LearnerConfig,
    ModelConfig,
    NetworkConfig,
    OverlongBufferConfig,
    RewardConfig,
    RolloutConfig,
    RolloutCorrectionConfig,
    RunConfig,
    Section,
    WeightsConfig,
)

__all__ = [
    "AlgorithmConfig",
    "Config",
    "CoordinatorConfig",
    "DataConfig",
    "EvalConfig",
    "FilterGroupsConfig",
    "GraderConfig",
    "LaunchConfig",
    "LearnerConfig",
    "ModelConfig",
    "NetworkConfig",
    "OverlongBufferConfig",
    "RewardConfig",
    "RolloutConfig",
    "RolloutCorrectionConfig",
    "RunConfig",
    "Section",
    "WeightsConfig",
]
