"""Says that nothing moves, and why: once after `coordinator.stall_warning_s`, then each time the silence has doubled.

A run moves when a group starts or ends, or when a step is committed. Steps may be long, so the first warning waits for twice
the wall time of the last step. Waits only for its own interval; ends nothing, which the deadlines do.
"""

from collections.abc import Callable

import structlog

from services.coordinator.groups.conductor import Conductor
from services.coordinator.run.waits import Since, Situation, Wait, find_waits
from services.coordinator.state.progress import RunState
from services.coordinator.state.run_context import RunContext

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0


class StallWatch:
    """Looks once a second; the looks also keep the times of all waits."""

    def __init__(self, run: RunContext, *, conductor: Conductor, situation: Callable[[], Situation]) -> None:
        self._progress, self._events, self._clock = run.progress, run.events, run.clock
        self._warn_after_s = run.config.coordinator.stall_warning_s
        self._conductor, self._situation = conductor, situation
        self._since = Since()
        self._running_since_s = run.clock.now()
        self._warned_s = 0.0

    def waits(self) -> list[Wait]:
        """Who waits for whom, now."""
        return find_waits(self._situation(), self._since.look(self._clock.now()))

    async def run(self) -> None:
        """Looks once a second until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_EVERY_S)

    def idle_s(self) -> float:
        """How long nothing has moved; 0 while the run is not in training."""
        if self._progress.state is not RunState.RUNNING:
            return 0.0
        moved_s = max(self._running_since_s, self._conductor.last_progress_s, self._progress.last_commit_s)
        return self._clock.now() - moved_s

    def look(self) -> None:
        """Warns when the run has stalled for long enough."""
        waits = self.waits()
        if self._progress.state is not RunState.RUNNING:
            self._running_since_s = self._clock.now()
        idle_s = self.idle_s()
        first_s = max(self._warn_after_s, 2 * self._progress.metrics.get("step/wall_s", 0.0))
        if idle_s < first_s:
            self._warned_s = 0.0
        elif idle_s >= max(first_s, 2 * self._warned_s):
            self._warned_s = idle_s
            why = "; ".join(map(str, waits)) or "nobody waits for anybody: this is a bug"
            log.warning("stalled", idle_s=round(idle_s), waits=why)
            self._events.emit("stalled", f"nothing has moved for {idle_s:.0f} s: {why}", values={"idle_s": idle_s})
