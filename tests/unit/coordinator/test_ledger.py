"""The conservation law at any moment."""

from services.coordinator.state.board import Board
from services.coordinator.state.group import Group, Phase
from services.coordinator.state.ledger import count
from tests.unit.coordinator.fakes import FakePrompt


def board(**phases: Phase) -> Board:
    made = Board(train_batch_size=4, gen_batch_size=4, max_staleness=1)
    for admission, (name, phase) in enumerate(phases.items()):
        group = Group(group_id=name, admission=admission, prompt=FakePrompt(prompt_id="p"), cursor="")
        group.phase = phase
        made.add(group)
    return made


def test_open_groups_are_told_apart_by_where_they_are() -> None:
    counts = count({"admitted": 4, "open": 3, "trained": 1}, board(a=Phase.IN_FLIGHT, b=Phase.SCORED, c=Phase.PENDING))
    assert counts.closed
    assert [counts.terms[term] for term in ("in_flight", "scored", "pending", "trained")] == [1, 1, 1, 1]


def test_a_group_that_left_redis_but_not_yet_the_board_makes_no_term_negative() -> None:
    counts = count({"admitted": 2, "open": 1, "queued": 1}, board(a=Phase.SCORED, b=Phase.IN_FLIGHT))
    assert counts.closed
    assert min(counts.terms.values()) == 0


def test_a_group_that_is_nowhere_keeps_the_ledger_open() -> None:
    assert not count({"admitted": 2, "trained": 1}, board()).closed


def test_failures_are_split_by_reason() -> None:
    counts = count({"admitted": 3, "failed:refused": 2, "failed:generation": 1}, board())
    assert counts.failed == {"refused": 2, "generation": 1}
    assert counts.closed
