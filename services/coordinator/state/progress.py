"""The progress of a run, which the API shows and from which a restarted coordinator continues."""

import enum
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from services.coordinator.state.evaluation_result import EvaluationResult
from sluice.policy_version import PolicyVersion


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
        """Whether the run has ended, unless it is opened again."""
        return self in (RunState.FINISHED, RunState.FAILED, RunState.STOPPED, RunState.STARVED)


KEPT_EVALUATIONS = 200
"""How many evaluations memory, Redis and GetStatus keep: the first of each set and the newest. RUN/metrics.jsonl has the
others."""


def later_ones(sets: Sequence[str]) -> Iterator[int]:
    """The places of evaluations that are not the first of their set, oldest first."""
    seen: set[str] = set()
    for place, name in enumerate(sets):
        if name in seen:
            yield place
        seen.add(name)


@dataclass(kw_only=True, slots=True)
class Progress:
    """The progress of one run; mutable."""

    state: RunState = RunState.STARTING
    reason: str = ""
    refused: bool = False
    """Whether a failed run was refused by the checks before training; known to the process that made them."""
    trained_steps: int = 0
    version: PolicyVersion | None = None
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
    """The first of each set and the newest ones, oldest first."""
    scale: dict[str, int] = field(default_factory=dict)
    part_names: list[str] = field(default_factory=list)
    """The named components of scores that have a metric (step_metrics.py)."""
    repairing: bool = False
    """Whether a repair is under way: the learner is there and not registered yet."""
    lay_still: bool = False
    """Whether the run was opened again and does not train yet."""

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

    def reopen(self, *, total_steps: int) -> None:
        """Lets a run that was stopped, has failed or was paused go on; a finished run goes on only when there are more steps
        to train.
        """
        self.stop_requested, self.stop_reason, self.admission = False, "", "open"
        if self.state is RunState.FINISHED and self.trained_steps >= total_steps:
            return
        if self.state.final or self.state is RunState.FINISHING:
            self.state = RunState.RUNNING if self.train_started_s else RunState.STARTING
            self.reason = ""
        self.lay_still = self.state is RunState.RUNNING

    def go_on(self, *, now_s: float) -> None:
        """Notes that all services are here again. The time that a reopened run was at rest is not training time (`now_s`:
        Unix time)."""
        if self.lay_still:
            self.train_started_s += max(0.0, now_s - max(self.train_ended_s, self.train_started_s))
            self.train_ended_s, self.lay_still = now_s, False

    def evaluated(self, result: EvaluationResult) -> None:
        """Adds an evaluation; of more than KEPT_EVALUATIONS the oldest goes that is not the first of its set."""
        self.evaluations.append(result)
        if len(self.evaluations) > KEPT_EVALUATIONS:
            del self.evaluations[next(later_ones([kept.set for kept in self.evaluations]))]

    def remember(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Takes evaluations and the time of the start from the lines of metrics.jsonl, after Redis has forgotten the run."""
        self.state = RunState.RUNNING
        self.evaluations = []
        for line in lines:
            if line.get("kind") == "eval":
                self.evaluated(EvaluationResult.from_line(line))
        first = lines[0] if lines else {"time_s": time.time()}
        self.train_started_s = first["time_s"] - first.get("step/wall_s", 0.0)

    def to_meta(self) -> dict[str, str]:
        """The part of the progress in Redis's `meta`; steps and version are in the records of commits."""
        return {
            "state": self.state.value,
            "reason": self.reason,
            "train_started_s": str(self.train_started_s),
            "train_ended_s": str(self.train_ended_s),
            "admission": self.admission,
            "stop": self.stop_reason if self.stop_requested else "",
            "evaluations": json.dumps([asdict(evaluation) for evaluation in self.evaluations]),
            "scale": json.dumps(self.scale),
            "part_names": json.dumps(self.part_names),
        }

    @staticmethod
    def from_meta(meta: Mapping[str, str], *, trained_steps: int, version: PolicyVersion | None) -> "Progress":
        """The inverse of `to_meta`; an empty `meta` is a new run."""
        return Progress(
            state=RunState(meta.get("state", "starting")),
            reason=meta.get("reason", ""),
            trained_steps=trained_steps,
            version=version,
            train_started_s=float(meta.get("train_started_s", 0)),
            train_ended_s=float(meta.get("train_ended_s", 0)),
            admission=meta.get("admission", "open"),
            stop_requested=bool(meta.get("stop")),
            stop_reason=meta.get("stop", ""),
            evaluations=[EvaluationResult.from_dict(entry) for entry in json.loads(meta.get("evaluations", "[]"))],
            scale=json.loads(meta.get("scale", "{}")),
            part_names=json.loads(meta.get("part_names", "[]")),
        )
