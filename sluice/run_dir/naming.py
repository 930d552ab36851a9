"""Names of new run directories."""

import secrets
import time
from pathlib import Path

from sluice.config.schema import Config


def new_run_dir(config: Config) -> Path:
    """RUNS/<name>-<time>-<4 hex digits>."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(config.run.dir) / f"{config.run.name}-{stamp}-{secrets.token_hex(2)}"
