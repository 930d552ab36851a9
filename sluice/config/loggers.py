"""Whether the packages behind `run.loggers` are installed, found out before anything is started."""

import importlib.util

from sluice.config.schema import Config
from sluice.errors import ConfigError


def check_loggers(config: Config) -> None:
    """Raises ConfigError with a line for each logger whose package is not installed. Imports none of the packages."""
    missing = [name for name in dict.fromkeys(config.run.loggers) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "\n".join(
                f"run.loggers: {name} is not installed where the coordinator runs; `pip install 'sluice-rl[{name}]'` there, "
                "or take it out of the list (metrics.jsonl has every line in any case)"
                for name in missing
            )
        )
