"""The engine that a recipe names. An engine's library is imported only where that engine is chosen."""

import importlib

from sluice.config.schema import LaunchConfig
from sluice.launch.engines.port import Engine

_CLASSES = {"local": "LocalEngine", "ray": "RayEngine", "slurm": "SlurmEngine"}
"""By the values of `launch.engine`; each class lies in a module of that name."""


def engine_of(launch: LaunchConfig) -> Engine:
    """The engine of `launch.engine`, not opened yet."""
    return getattr(importlib.import_module(f"sluice.launch.engines.{launch.engine}"), _CLASSES[launch.engine])()
