"""Where a run stands: what the API shows, and what a restarted coordinator picks up."""

import enum
import time
from dataclasses import dataclass, field

from services.coordinator.evaluation import EvaluationResult
from services.coordinator.model import Version


class RunState(enum.Enum):
    """States of a run; the last four are final."""

    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    STARVED = "starved"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.STOPPED, RunState.STARVED)


@dataclass(kw_only=True, slots=True)
class Progress:
    """Mutable; one a run."""

    state: RunState = RunState.STARTING
    reason: str = ""
    trained_steps: int = 0
    version: Version | None = None
    """Newest version the learner has published."""
    last_commit_s: float = 0.0
    """Clock time of the last commit."""
    train_started_s: float = 0.0
    """Unix time of the first admission; 0 before."""
    train_ended_s: float = 0.0
    """Unix time of the last commit; 0 before."""
    admission: str = "open"
    """'open', 'paused' or 'draining'."""
    stop_requested: bool = False
    stop_reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    evaluations: list[EvaluationResult] = field(default_factory=list)
    scale: dict[str, int] = field(default_factory=dict)

    @property
    def admitting(self) -> bool:
        """Whether new groups may start."""
        return self.state is RunState.RUNNING and self.admission == "open" and not self.stop_requested

    @property
    def train_wall_s(self) -> float:
        """Seconds from the first admission to the last commit, or until now."""
        if not self.train_started_s:
            return 0.0
        running = self.state is RunState.RUNNING
        return (time.time() if running else self.train_ended_s or time.time()) - self.train_started_s
