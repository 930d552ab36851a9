"""The engine that a recipe names. An engine's library is imported only where that engine is chosen."""

import importlib

from sluice.config.schema import LaunchConfig
from sluice.errors import ConfigError
from sluice.launch.engines.port import Engine

_CLASSES = {"local": "LocalEngine", "ray": "RayEngine", "slurm": "SlurmEngine"}
"""By the values of `launch.engine`; each class lies in a module of that name."""


def engine_of(launch: LaunchConfig) -> Engine:
    """The engine of `launch.engine`, not opened yet. Raises ConfigError without its library."""
    try:
        module = importlib.import_module(f"sluice.launch.engines.{launch.engine}")
    except ModuleNotFoundError as error:
        package = (error.name or launch.engine).partition(".")[0]
        raise ConfigError(
            f"launch.engine: {launch.engine} needs the package {package}, which is not installed here: "
            f"pip install 'sluice-rl[{launch.engine}]'"
        ) from error
    return getattr(module, _CLASSES[launch.engine])()
