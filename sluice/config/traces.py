"""Where `telemetry.traces` sends spans, and whether the packages for it are installed, found out before anything is started."""

import importlib.util
import re
from typing import Final

from sluice.config.schema import Config
from sluice.config.schema.telemetry import COLLECTOR, FILE
from sluice.errors import ConfigError

__all__ = ["FILE", "check_traces", "collector_of"]

_PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.grpc")


def collector_of(traces: str) -> str:
    """HOST:PORT of a collector's address that the schema has taken."""
    return re.sub(f"^{re.escape(COLLECTOR)}", "", traces)


def check_traces(config: Config) -> None:
    """Raises ConfigError where a collector is asked for and a package is not installed. Imports no exporter."""
    where = config.telemetry.traces
    if where is None or where == FILE or all(map(_is_there, _PACKAGES)):
        return
    raise ConfigError(
        f"telemetry.traces: {where} needs OpenTelemetry's exporter, which is not installed; `pip install 'sluice-rl[traces]'` "
        "on every machine of the run, or set telemetry.traces: file, which needs no package"
    )


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # a package above it
        return False
