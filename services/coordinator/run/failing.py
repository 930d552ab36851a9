"""Groups that fail one after the other: says so at once, and ends the run when none has ended well for a long time.

A judge that talks nonsense for some minutes, or a service that is broken until somebody mends it, costs the groups that are
tried meanwhile, a few a minute (groups/failures.py), and not the run.
"""

import structlog

from services.coordinator.groups.failures import TRY_AGAIN_S, Failures
from services.coordinator.run.absences import Absences
from services.coordinator.state.run_context import RunContext

log = structlog.get_logger(__name__)


class FailureWatch:
    """Watches the failures in a row."""

    def __init__(self, run: RunContext, *, failures: Failures) -> None:
        self._limit_s = run.config.coordinator.no_service_timeout_s
        self._events, self._failures = run.events, failures
        self._without_success = Absences(run.clock)
        self._told = False

    def look(self) -> str:
        """Warns when groups begin to fail; returns why the run must end, or ""."""
        failures = self._failures
        told = f"{failures.in_a_row} groups failed in a row; the last: {failures.last_fault}"
        if failures.have_a_cause and not self._told:
            log.warning("groups_fail", failures=failures.in_a_row, last=failures.last_fault)
            self._events.emit("warning", f"{told}; one is tried every {TRY_AGAIN_S:g} s until one ends well")
        self._told = failures.have_a_cause
        failing = ["groups"] if failures.have_a_cause else []
        if not self._without_success.look(failing, limit_s=self._limit_s):
            return ""
        return f"{told}; none ended well for {self._limit_s:.0f} s (coordinator.no_service_timeout_s)"
