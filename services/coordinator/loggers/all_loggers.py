"""The loggers of a run, fed together."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.coordinator.loggers.feed import Feed, Logger
from services.coordinator.loggers.line import line_of
from services.coordinator.loggers.to_mlflow import MlflowLogger
from services.coordinator.loggers.to_tensorboard import TensorBoardLogger
from services.coordinator.loggers.to_wandb import WandbLogger
from sluice.config.loggers import check_loggers
from sluice.config.schema import Config

CLOSE_WITHIN_S = 10.0
"""Limit for closing all loggers. Chosen: an upload may take a while, and `launch.grace_s` is 15 s."""


class Loggers:
    """All feeds of a run; most runs have no feeds."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._feeds = feeds

    @property
    def dropped(self) -> int:
        """Lines that loggers did not take, over all loggers."""
        return sum(feed.dropped for feed in self._feeds)

    def put(self, record: Mapping[str, Any]) -> None:
        """Hands a line of metrics.jsonl to every feed; returns at once."""
        if self._feeds:
            line = line_of(record)
            for feed in self._feeds:
                feed.put(line)

    async def close(self) -> None:
        """Waits, for a limited time, until all loggers have written their waiting lines."""
        async with asyncio.TaskGroup() as tasks:
            for feed in self._feeds:
                tasks.create_task(asyncio.to_thread(feed.close, within_s=CLOSE_WITHIN_S))


def open_loggers(config: Config, *, run_dir: Path, trained_steps: int, run_id: str | None = None) -> Loggers:
    """Opens `run.loggers`. `trained_steps` is the run's present number of trained steps, which a rollback reduces.

    `run_id` is a name that no other run has; None: the run directory's. Raises ConfigError when a logger's package is not
    installed.
    """
    check_loggers(config)
    settings = config.model_dump(mode="json")
    run_id, name = run_id or run_dir.name, config.run.name
    makers: Mapping[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(run_dir / "tensorboard", trained_steps=trained_steps),
        "wandb": lambda: WandbLogger(project=name, run_id=run_id, folder=run_dir, settings=settings),
        "mlflow": lambda: MlflowLogger(experiment=name, run_id=run_id, settings=settings),
    }
    return Loggers([Feed(wanted, makers[wanted]) for wanted in dict.fromkeys(config.run.loggers)])
