"""Weights & Biases: one run of the project `run.name`. Its own variables (WANDB_MODE, WANDB_ENTITY, ...) hold.

W&B takes no line behind its newest one, and an evaluation ends after later steps did: so the place goes along as a value
of its own, which is the axis of all charts.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.coordinator.loggers.line import Line

AXIS = "trained_steps"


class WandbLogger:
    """A run of the same id as Sluice's, which a later coordinator goes on with."""

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
        """One row."""
        self._run.log({AXIS: line.trained_steps, **line.values})

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()
