"""Names: of new run directories, and of the file in one that says where the run's coordinator is."""

import secrets
import time
from pathlib import Path

from sluice.config.schema import Config

ADDRESS_FILE = "coordinator-address"
"""HOST:PORT of the coordinator that was started last, for those who see the run directory."""


def new_run_dir(config: Config) -> Path:
    """RUNS/<name>-<time>-<4 hex digits>."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(config.run.dir) / f"{config.run.name}-{stamp}-{secrets.token_hex(2)}"
