"""How long a run that has ended waits for its learner, which exports the model. Pure: time comes in as an argument.

| the learner                                      | limit                                            |
|--------------------------------------------------|--------------------------------------------------|
| is here and exports, or leaves                   | thrice `learner.step_timeout_s`, and UNSEEN_S    |
| is here and trains again up to the last version  | none: each of its steps has a limit              |
| waits for room on a full disk                    | none: the run goes on by itself once there is    |
| is away                                          | `launch.ready_timeout_s` since it went away      |
"""

from sluice.config.schema import Config
from sluice.v1 import coordinator_pb2 as pb

LEARNERS_OWN = 3.0
"""Longer than the learner itself waits for a rank that hangs, which is twice `learner.step_timeout_s` where it does something
for the first time: the learner then starts again and exports."""

UNSEEN_S = 30.0
"""A rank that hangs while a checkpoint is written is noticed when its socket takes no more commands: 25 s were seen."""


class ExportWait:
    """The wait for one run's learner, after the run's end."""

    def __init__(self, config: Config) -> None:
        machines = 2 if config.launch.learner_nnodes > 1 else 1  # which may need the first half to meet
        self._limits_s = {
            "exports": LEARNERS_OWN * config.learner.step_timeout_s + UNSEEN_S,
            "trains": float("inf"),
            "waits": float("inf"),
            "is away": config.launch.ready_timeout_s * machines,
        }
        self._does, self._since_s = "", 0.0

    def is_over(self, status: pb.GetStatusResponse, *, now_s: float) -> bool:
        """Whether the learner has had its time, by the status of a run that has ended."""
        does = _activity(status)
        if does != self._does:
            self._does, self._since_s = does, now_s
        return now_s - self._since_s > self._limits_s[does]


def _activity(status: pb.GetStatusResponse) -> str:
    if status.waits:  # behind the run's end somebody waits only for room
        return "waits"
    learners = [one for one in status.services if one.role == pb.SERVICE_ROLE_LEARNER]
    here = [one for one in learners if one.state != pb.SERVICE_STATE_LOST]
    if not here:
        return "is away"
    return "trains" if here[-1].version.number < status.step else "exports"
