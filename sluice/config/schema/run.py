"""`run`: identity and length of a run."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PathText, PositiveInt, Section

FILE_BYTES = 64 << 20
"""Chosen: every line of 20,000 steps with 60 metrics."""


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
    file_max_bytes: int = Field(
        default=FILE_BYTES,
        ge=4096,
        description="size from which metrics.jsonl, samples.jsonl and sample_tokens.jsonl are thinned to half of it, "
        "older steps to every second, fourth, ..., and from which a service's log under logs/ moves to NAME.log.1, over "
        "the one before",
    )
    ui: bool = Field(
        default=False,
        description="whether `sluice up` serves the run's page on this machine, and says its address first (docs/ui.md); "
        "needs the extra `ui`",
    )
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        default_factory=list,
        description="loggers that get the lines of metrics.jsonl too; each needs its package, an extra of that name "
        "(docs/monitoring.md)",
    )

    def problems(self) -> Iterator[str]:
        """Refuses the two names that stand for other folders."""
        if self.name in (".", ".."):
            yield f"name: must be a name of its own, got {self.name!r}"
