"""Where an attached launcher has placed each service, and which services wait for a place, by the launcher's own account."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.coordinator.state.signal import Signal
from sluice.clock import Clock

FORGOTTEN_S = 30.0
"""How long a report holds. Chosen: many of a launcher's reports, which come every few seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One service, placed on a node or waiting for a place."""

    service_id: str
    node: str = ""
    """Empty for a service without a place."""
    waits_for: str = ""
    """Why the service has no place, in the engine's words; empty for a service with a place."""
    since_s: float = 0.0
    """Seconds that the wait had lasted at the report."""


class Places:
    """The newest report, while that report holds."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._places: Sequence[Place] = ()
        self._heard_s = float("-inf")
        self.changed = Signal()
        """At each report."""

    def report(self, places: Sequence[Place]) -> None:
        """Takes a launcher's whole account in place of the account before."""
        self._places, self._heard_s = places, self._clock.now()
        self.changed.notify()

    def known(self) -> set[str]:
        """The services that have a place or wait for one."""
        return {place.service_id for place in self._now()}

    def nodes(self) -> dict[str, str]:
        """The node of each placed service, by service id."""
        return {place.service_id: place.node for place in self._now() if place.node}

    def waiting(self) -> list[tuple[Place, float]]:
        """The services without a place, each with the seconds that its wait has lasted by now."""
        age_s = self._clock.now() - self._heard_s
        return [(place, place.since_s + age_s) for place in self._now() if place.waits_for]

    def awaited(self) -> set[str]:
        """The roles with a service that waits for a place, for as long as the launcher lets it: `learner-1` is a learner."""
        return {place.service_id.partition("-")[0] for place in self._now() if place.waits_for}

    def _now(self) -> Sequence[Place]:
        return self._places if self._clock.now() - self._heard_s <= FORGOTTEN_S else ()
