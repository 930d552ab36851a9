"""How many rollouts a run should have, by who idles: docs/own-run.md, "Sizing: who idles?". Pure: figures in, a number out.

A window is so many trained steps and so many seconds long. Learner idle: the share of those steps in which the learner waited
for its batch. Rollouts idle: the share of looks, one a second and rollout, at which a rollout ran no sample.

 learner idle   rollouts idle
 > 10 %         < 10 %          one rollout more, or two where the learner waits for half of its time
 < 10 %         > 10 %          one less, where those left can do the work of one that is idle for so long
 both or none                   as it is: generation and training alternate, or are balanced
Damping: two windows in a row must ask for the same, one change at a time, and a window begins only when every rollout that was
asked for takes groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sluice.config.schema.launch import LaunchConfig, ReplicaRange

IDLE: Final = 0.1
"""The share of time above which a side idles."""
MUCH_IDLE: Final = 0.5
"""The share of the learner's time above which one rollout more cannot be enough."""
WINDOW_STEPS: Final = 3
WINDOW_S: Final = 60.0
"""The shortest window. Chosen: a change costs a rollout's start, seconds to minutes, and a push of weights."""


def autoscaler_of(launch: LaunchConfig) -> "Autoscaler | None":
    """For a recipe whose number of rollouts follows the load."""
    if not isinstance(launch.rollout_replicas, ReplicaRange):
        return None
    wanted = launch.rollout_replicas
    return Autoscaler(least=wanted.min, most=wanted.max, wished=wanted.min)


@dataclass(kw_only=True, slots=True)
class Autoscaler:
    """Use with figures of one run, once a second."""

    least: int
    most: int
    wished: int
    """Rollouts asked for."""
    window_s: float = WINDOW_S
    _began_s: float = field(default=float("nan"), init=False)
    _waited_s: float = field(default=0.0, init=False)
    _stepped_s: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _looks: int = field(default=0, init=False)
    _idle_looks: int = field(default=0, init=False)
    _asked: int = field(default=0, init=False)
    """The change that the window before asked for."""

    def step(self, values: Mapping[str, float]) -> None:
        """Takes the metrics of a trained step."""
        self._steps += 1
        self._waited_s += values.get("learner/wait_s", 0.0)
        self._stepped_s += values.get("step/wall_s", 0.0)

    def look(self, running: Sequence[int], *, now_s: float) -> int:
        """Takes the running samples of each rollout that takes groups; returns how many rollouts there should be."""
        if len(running) != self.wished or self._began_s != self._began_s:
            self._begin(now_s)
            return self.wished
        self._looks += len(running)
        self._idle_looks += sum(count == 0 for count in running)
        if self._steps < WINDOW_STEPS or now_s - self._began_s < self.window_s:
            return self.wished
        change, before = self._change(), self._asked
        self._asked = change
        self._begin(now_s)
        if change and change * before > 0:
            self._asked = 0
            self.wished = min(max(self.wished + change, self.least), self.most)
        return self.wished

    def why(self) -> str:
        """The rule in words, for the message beside a change."""
        return f"by who idles, launch.rollout_replicas {self.least} to {self.most}"

    def _change(self) -> int:
        learner = self._waited_s / self._stepped_s if self._stepped_s else 0.0
        rollouts = self._idle_looks / self._looks if self._looks else 0.0
        if learner > IDLE and rollouts < IDLE:
            return 2 if learner > MUCH_IDLE else 1
        if learner < IDLE and rollouts > IDLE and rollouts * self.wished >= 1:
            return -1
        return 0

    def _begin(self, now_s: float) -> None:
        self._began_s = now_s
        self._waited_s = self._stepped_s = 0.0
        self._steps = self._looks = self._idle_looks = 0
