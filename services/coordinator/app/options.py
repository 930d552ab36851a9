"""What the command line says of one coordinator."""

from dataclasses import dataclass, field
from pathlib import Path

from sluice.rpc.credentials import NO_CREDENTIALS, Credentials


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Where a coordinator serves, and how it treats a run that is there."""

    run_dir: Path
    redis_url: str
    bind: str
    port: int
    metrics_port: int
    ready_fd: int | None
    check_only: bool = False
    """End after the reward check."""
    reopen: bool = False
    """Go on with a run that was stopped or has failed."""
    idle: bool = False
    """Serve the API of a run that lies still, without going on with it."""
    stay: bool = False
    """Serve until a signal: whoever started this process ends it, and would only start it again."""
    own_redis: bool = False
    """Redis serves this run alone, and ends with it."""
    credentials: Credentials = field(default=NO_CREDENTIALS, repr=False)
