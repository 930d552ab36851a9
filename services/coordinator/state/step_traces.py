"""Where the traces of the newest steps are, for links: the learner says so when it commits a step."""

from typing import Final

from sluice.telemetry.traces.context import TraceContext

_KEPT: Final = 16
"""Versions; chosen: a rollout that is further behind is being looked at anyway."""


class StepTraces:
    """The roots of the newest steps' traces, by the version that a step has made."""

    def __init__(self) -> None:
        self._roots: dict[int, TraceContext] = {}

    def note(self, version: int, root: TraceContext) -> None:
        """Remembers the trace of a step, and forgets the oldest traces."""
        self._roots[version] = root
        for old in sorted(self._roots)[:-_KEPT]:
            del self._roots[old]

    def of(self, version: int) -> TraceContext | None:
        """The step that made `version`; None for an old one, and where the learner keeps no traces."""
        return self._roots.get(version)
