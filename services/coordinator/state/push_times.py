"""Times and bytes of the weight pushes since the last commit: written by pushes, read by the commit."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PushTime:
    """What one push took."""

    push_ms: float
    receive_ms: float
    stall_ms: float
    links: int = 1
    """Links between the learner and the rollout; 1: the learner sent."""
    source_changes: int = 0
    """How often the rollout got another source on the way."""
    encoding: str = ""
    """dense or delta; empty with files."""
    sent_bytes: int = 0
    dense_bytes: int = 0
    """The bytes of the whole version."""


@dataclass(slots=True)
class PushTimes:
    """All pushes since the last commit."""

    _since_commit: list[PushTime] = field(default_factory=list)

    def add(self, time: PushTime) -> None:
        """Adds a push that a rollout has applied."""
        self._since_commit.append(time)

    def clear(self) -> None:
        """Begins anew after a commit."""
        self._since_commit = []

    def metrics(self) -> dict[str, float]:
        """The slowest push of each phase, the longest chain, and the bytes of all pushes; empty without a push."""
        if not self._since_commit:
            return {}
        return {
            "weights/push_ms": max(time.push_ms for time in self._since_commit),
            "weights/receive_ms": max(time.receive_ms for time in self._since_commit),
            "weights/stall_ms": max(time.stall_ms for time in self._since_commit),
            "weights/relay_links": float(max(time.links for time in self._since_commit)),
            "weights/source_changes": float(sum(time.source_changes for time in self._since_commit)),
            "weights/sent_bytes": float(sum(time.sent_bytes for time in self._since_commit)),
            "weights/dense_bytes": float(sum(time.dense_bytes for time in self._since_commit)),
            "weights/deltas": float(sum(time.encoding == "delta" for time in self._since_commit)),
        }
