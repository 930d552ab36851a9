"""`run`: identity and length of a run."""

from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PathText, PositiveInt, Section


class RunConfig(Section):
    """Identity and length of a run."""

    name: str = Field(
        default="run",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="first part of the run directory's name",
    )
    dir: PathText = Field(default="runs", description="where run directories are made")
    seed: NonNegativeInt = Field(
        default=0, description="the one seed: prompt order, sampling and training derive from it"
    )
    total_steps: PositiveInt = Field(default=100, description="steps to train; one step is one batch")
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default_factory=list,
        description="loggers that get the lines of metrics.jsonl too; each needs its package, an extra of that name "
        "(docs/monitoring.md)",
    )
