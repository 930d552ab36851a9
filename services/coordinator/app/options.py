"""The options of one coordinator's command line."""

from dataclasses import dataclass, field
from pathlib import Path

from sluice.rpc.credentials import NO_CREDENTIALS, Credentials


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Where a coordinator serves, and how the coordinator treats a run directory with a run."""

    run_dir: Path
    redis_url: str
    bind: str
    port: int
    metrics_port: int
    ready_fd: int | None
    check_only: bool = False
    """End after the reward check."""
    evaluate_only: bool = False
    """Evaluate the weights of the model's folder on every evaluation set, then end: there is no learner."""
    reopen: bool = False
    """Continue a run that was stopped or has failed."""
    idle: bool = False
    """Serve the API of a run at rest, without continuing the run."""
    stay: bool = False
    """Serve until a signal, for a launcher that ends this process itself and would start an ended process again."""
    own_redis: bool = False
    """Redis serves this run alone, and ends with the run."""
    redis_password: str = field(default="", repr=False)
    """Empty: the password of the configuration, if any."""
    credentials: Credentials = field(default=NO_CREDENTIALS, repr=False)
