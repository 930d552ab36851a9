"""Weights & Biases: one run of the project `run.name`. W&B's own variables (WANDB_MODE, WANDB_ENTITY, ...) apply.

W&B takes no line for an earlier place than its newest line, and an evaluation may end after later steps. So each line
carries its place as a value, which is the axis of all charts.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.coordinator.loggers.line import Line

AXIS = "trained_steps"


class WandbLogger:
    """A W&B run with the id of Sluice's run; a later coordinator continues the W&B run."""

    def __init__(self, *, project: str, run_id: str, folder: Path, settings: Mapping[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project,
            id=run_id,
            name=run_id,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric=AXIS)

    def write(self, line: Line) -> None:
        """Writes one row."""
        self._run.log({AXIS: line.trained_steps, **line.values})

    def close(self) -> None:
        """Uploads the remaining rows."""
        self._run.finish()
