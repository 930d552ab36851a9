"""The times of the weight pushes since the last commit: written by pushes, read by the commit."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTime:
    """The times of one push."""

    push_ms: float
    receive_ms: float
    stall_ms: float
    links: int = 1
    """Links between the learner and the rollout; 1: the learner sent."""
    source_changes: int = 0
    """How often the rollout got another source on the way."""


@dataclass(slots=True)
class PushTimes:
    """The times of all pushes since the last commit."""

    _since_commit: list[PushTime] = field(default_factory=list)

    def add(self, time: PushTime) -> None:
        """Adds the times of a push that a rollout has applied."""
        self._since_commit.append(time)

    def clear(self) -> None:
        """Begins anew after a commit."""
        self._since_commit = []

    def metrics(self) -> dict[str, float]:
        """The slowest push of each phase, and the longest chain where rollouts relayed; empty without a push."""
        if not self._since_commit:
            return {}
        links = max(time.links for time in self._since_commit)
        changes = sum(time.source_changes for time in self._since_commit)
        relayed = {"weights/relay_links": float(links), "weights/source_changes": float(changes)}
        return (relayed if links > 1 or changes else {}) | {
            "weights/push_ms": max(time.push_ms for time in self._since_commit),
            "weights/receive_ms": max(time.receive_ms for time in self._since_commit),
            "weights/stall_ms": max(time.stall_ms for time in self._since_commit),
        }
