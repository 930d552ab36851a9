"""The conservation law: every admitted group is under exactly one term. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.coordinator.board import Board
from services.coordinator.model import TERMINAL, Phase


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCounts:
    """Terms in groups, and the tokens received from rollouts."""

    admitted: int
    terms: Mapping[str, int]
    """assigned, queued, scored, in_flight, pending and the terminal terms."""
    failed: Mapping[str, int]
    generated_tokens: int
    trained_tokens: int
    lost_tokens: int

    @property
    def closed(self) -> bool:
        """admitted = sum of all terms."""
        return self.admitted == sum(self.terms.values()) + sum(self.failed.values())


def count(counters: Mapping[str, int], board: Board) -> LedgerCounts:
    """Reads the durable counters; where an open group is on its way comes from the board.

    Redis changes an answer earlier than the board: a group that just left may still be in flight there. `open` of Redis
    is the measure, so that no term is ever negative and the sum holds at any moment.
    """
    terms = {name: counters.get(name, 0) for name in ("queued", "assigned", *TERMINAL)}
    left = counters.get("open", 0)
    for term, phase in (("in_flight", Phase.IN_FLIGHT), ("scored", Phase.SCORED)):
        terms[term] = min(board.count(phase), left)
        left -= terms[term]
    terms["pending"] = left
    open_tokens = sum(group.response_tokens + group.lost_tokens for group in board.open.values())
    return LedgerCounts(
        admitted=counters.get("admitted", 0),
        terms=terms,
        failed={name.removeprefix("failed:"): value for name, value in counters.items() if name.startswith("failed:")},
        generated_tokens=counters.get("generated_tokens", 0) + open_tokens,
        trained_tokens=counters.get("trained_tokens", 0),
        lost_tokens=counters.get("lost_tokens", 0),
    )
