"""One walk over all live groups, in every state."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.coordinator.state.board import Board
from services.coordinator.state.group import Group, QueuedGroup
from services.coordinator.state.ledger_row import ledger_row, queued_row


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveGroup:
    """A live group and its state."""

    group: Group | QueuedGroup
    """A Group while the group is open, then a QueuedGroup."""
    state: str
    """'pending', 'in_flight', 'scored', 'queued' or 'assigned'."""
    step: int = -1
    """The step of the group's batch; -1 before the assignment."""

    @property
    def prompt_id(self) -> str:
        """The id of the group's prompt."""
        return self.group.prompt.prompt_id if isinstance(self.group, Group) else self.group.prompt_id

    def row(self, *, term: str | None = None) -> dict[str, Any]:
        """The group's ledger row: the present row, or the row of an end under `term`."""
        ended = term is not None
        if isinstance(self.group, Group):
            return ledger_row(self.group, term=term or self.state, ended=ended)
        return queued_row(self.group, term=term or self.state, step=self.step, ended=ended)


def live_groups(board: Board, assigned: Mapping[int, Sequence[QueuedGroup]]) -> Iterator[LiveGroup]:
    """Open groups, accepted groups, then the groups of assigned batches (by step); each kind newest first."""
    for group in reversed(list(board.open.values())):
        yield LiveGroup(group=group, state=group.phase.value)
    for group in reversed(list(board.queued.values())):
        yield LiveGroup(group=group, state="queued")
    for step, groups in reversed(list(assigned.items())):
        for group in reversed(groups):
            yield LiveGroup(group=group, state="assigned", step=step)
