"""The conservation law: every admitted group, and every completion token received, is under exactly one term. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.coordinator.state.board import Board
from services.coordinator.state.group import TERMINAL, Phase

LIVE = ("assigned", "queued", "scored", "in_flight", "pending")

_SUMS = {
    "live": LIVE,
    "filtered": ("filtered_all_right", "filtered_all_wrong", "filtered_other"),
    **{term: (term,) for term in ("trained", "stale", "surplus", "rollback", "abandoned")},
}
"""The sums of terms in the metrics; `failed` is the sum of all reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounts:
    """Terms in groups and in completion tokens."""

    admitted: int
    terms: Mapping[str, int]
    """Groups by term: assigned, queued, scored, in_flight, pending and the terminal terms."""
    failed: Mapping[str, int]
    """Failed groups, by reason."""
    received_tokens: int
    """Tokens received from rollouts, counted when they are booked and apart from the terms."""
    tokens: Mapping[str, int]
    """Tokens of the groups' samples, by the same terms."""
    failed_tokens: Mapping[str, int]
    lost_tokens: int
    """Tokens of samples thrown away: too old to be trained in time after a failed attempt, or refused."""

    @property
    def groups_closed(self) -> bool:
        """admitted = sum of all terms."""
        return self.admitted == sum(self.terms.values()) + sum(self.failed.values())

    @property
    def tokens_closed(self) -> bool:
        """received = sum of all terms + lost."""
        return self.received_tokens == sum(self.tokens.values()) + sum(self.failed_tokens.values()) + self.lost_tokens

    @property
    def closed(self) -> bool:
        """Whether both sums hold, in groups and in tokens."""
        return self.groups_closed and self.tokens_closed


def count(counters: Mapping[str, int], board: Board) -> LedgerCounts:
    """The durable counters, with the phases of open groups from the board.

    Redis changes one answer earlier than the board: a group that has just ended in Redis may still be in flight on the
    board. Redis's count of open groups decides, so that no term is ever negative and the sum holds at any moment. The tokens
    of such a group count under both terms, and as received twice, until the board follows.
    """
    ended = ("queued", "assigned", *TERMINAL)
    terms = {name: counters.get(name, 0) for name in ended}
    left = counters.get("open", 0)
    for term, phase in (("in_flight", Phase.IN_FLIGHT), ("scored", Phase.SCORED)):
        terms[term] = min(board.count(phase), left)
        left -= terms[term]
    terms["pending"] = left
    tokens = {name: counters.get(f"tokens:{name}", 0) for name in ended}
    for phase in Phase:
        tokens[phase.value] = sum(group.response_tokens for group in board.open.values() if group.phase is phase)
    open_lost = sum(group.lost_tokens for group in board.open.values())
    return LedgerCounts(
        admitted=counters.get("admitted", 0),
        terms=terms,
        failed=_by_reason(counters, "failed:"),
        received_tokens=counters.get("generated_tokens", 0) + open_lost + sum(tokens[phase.value] for phase in Phase),
        tokens=tokens,
        failed_tokens=_by_reason(counters, "tokens:failed:"),
        lost_tokens=counters.get("lost_tokens", 0) + open_lost,
    )


def ledger_metrics(counts: LedgerCounts) -> dict[str, float]:
    """The catalogue's `ledger/` metrics."""
    groups = {name: sum(counts.terms[term] for term in terms) for name, terms in _SUMS.items()}
    tokens = {name: sum(counts.tokens[term] for term in terms) for name, terms in _SUMS.items()}
    groups |= {"admitted": counts.admitted, "failed": sum(counts.failed.values())}
    tokens |= {
        "received": counts.received_tokens,
        "failed": sum(counts.failed_tokens.values()),
        "lost": counts.lost_tokens,
    }
    return {
        **{f"ledger/{name}_groups": float(value) for name, value in groups.items()},
        **{f"ledger/{name}_tokens": float(value) for name, value in tokens.items()},
        "ledger/closed": float(counts.closed),
    }


def _by_reason(counters: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in counters.items() if name.startswith(prefix)}
