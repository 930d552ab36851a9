"""Groups that fail one after the other: says so at once, and ends the run when none has ended well for a long time.

A judge that talks nonsense for some minutes, or a service that is broken until somebody mends it, costs the groups that are
tried meanwhile, a few a minute (groups/conductor.py), and not the run.
"""

import structlog

from services.coordinator.groups.conductor import TRY_AGAIN_S, Conductor
from services.coordinator.run.absences import Absences
from services.coordinator.state.run_context import RunContext

log = structlog.get_logger(__name__)


class FailureWatch:
    """Watches the failures in a row."""

    def __init__(self, run: RunContext, *, conductor: Conductor) -> None:
        self._limit_s = run.config.coordinator.no_service_timeout_s
        self._events, self._conductor = run.events, conductor
        self._without_success = Absences(run.clock)
        self._told = False

    def look(self) -> str:
        """Warns when groups begin to fail; returns why the run must end, or ""."""
        conductor = self._conductor
        told = f"{conductor.failures_in_a_row} groups failed in a row; the last: {conductor.last_fault}"
        if conductor.fails and not self._told:
            log.warning("groups_fail", failures=conductor.failures_in_a_row, last=conductor.last_fault)
            self._events.emit("warning", f"{told}; one is tried every {TRY_AGAIN_S:g} s until one ends well")
        self._told = conductor.fails
        failing = ["groups"] if conductor.fails else []
        if not self._without_success.look(failing, limit_s=self._limit_s):
            return ""
        return f"{told}; none ended well for {self._limit_s:.0f} s (coordinator.no_service_timeout_s)"
