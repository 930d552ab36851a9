"""Which rollouts may sample for a group now, after what was tried."""

from dataclasses import dataclass, field

from services.coordinator.state.board import Board
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.member import Member, Role


@dataclass(kw_only=True, slots=True)
class Tried:
    """The members on which work was tried, by service_id."""

    refused_by: dict[str, Member] = field(default_factory=dict)
    """These get the work never again."""
    failed_on: set[str] = field(default_factory=set)
    """These get the work again only when there is no other."""


def rollouts_for(fleet: Fleet, board: Board, *, admission: int, tried: Tried, begun: bool = False) -> list[Member]:
    """READY rollouts that hold a version on which a group of this admission may start, or go on where it has `begun`, and
    that do not state to be full."""
    gate = board.may_go_on if begun else board.may_start
    held = [
        (member, member.version.number)
        for member in fleet.of(Role.ROLLOUT)
        if member.version is not None and not member.finishing and member.service_id not in tried.refused_by
    ]
    versions = {number for _, number in held}  # few versions, however large the fleet
    allowed = {number for number in versions if gate(admission=admission, version=number)}
    return fleet.without_full([member for member, number in held if number in allowed])
