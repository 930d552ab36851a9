"""Which groups make up the next batch, and for whom it waits."""

from services.coordinator.state.acceptance import Acceptance
from services.coordinator.state.board import Board
from services.coordinator.state.group import Group
from tests.unit.coordinator.fakes import FakePrompt, make_accepted, make_sample


def in_flight(admission: int, *, version: int = 0) -> Group:
    prompt = FakePrompt(prompt_id=f"p{admission}")
    return Group(group_id=f"g{admission}", admission=admission, prompt=prompt, cursor="", start_version=version)


def board(*, batch: int = 2, staleness: int = 1, partial_after: int | None = None) -> Board:
    return Board(train_batch_size=batch, gen_batch_size=2 * batch, max_staleness=staleness, partial_after=partial_after)


def test_a_batch_takes_accepted_groups_in_admission_order_not_completion_order() -> None:
    made = board()
    for admission in (5, 1, 3):
        made.restore(make_accepted(admission))
    assert [group.admission for group in made.choose().chosen] == [1, 3]


def test_a_group_older_than_the_bound_is_expired_not_chosen() -> None:
    made = board()
    made.next_step = 2
    for admission, oldest in ((0, 0), (1, 1), (2, 2)):
        made.restore(make_accepted(admission, oldest=oldest))
    choice = made.choose()
    assert [group.admission for group in choice.expired] == [0]
    assert [group.admission for group in choice.chosen] == [1, 2]


def test_the_batch_waits_for_a_slow_group_that_no_later_batch_could_train() -> None:
    made = board()
    made.next_step = 1
    made.add(in_flight(0, version=0))
    for admission in (1, 2):
        made.restore(make_accepted(admission))
    assert [group.admission for group in made.choose().wait_for] == [0]


def test_it_does_not_wait_for_a_group_that_the_next_batch_can_still_train() -> None:
    made = board()
    made.next_step = 1
    made.add(in_flight(0, version=1))
    for admission in (1, 2):
        made.restore(make_accepted(admission))
    assert made.choose().wait_for == []


def test_it_waits_for_slow_groups_that_are_too_many_for_the_next_batch() -> None:
    made = board()
    for admission in (0, 1, 2):
        made.add(in_flight(admission, version=0))
    for admission in (3, 4):
        made.restore(make_accepted(admission))
    assert [group.admission for group in made.choose().wait_for] == [2], "batch 1 takes two of them"
    made = board()
    for admission in (0, 3):
        made.restore(make_accepted(admission))
    for admission in (1, 2):
        made.add(in_flight(admission, version=0))
    assert made.choose().wait_for == [], "group 0, ahead of them, is taken"


def test_it_does_not_wait_for_groups_admitted_after_the_batch() -> None:
    made = board()
    made.next_step = 1
    for admission in (0, 1):
        made.restore(make_accepted(admission))
    made.add(in_flight(2, version=0))
    assert made.choose().wait_for == []


def test_surviving_samples_of_a_retried_group_count_for_its_age() -> None:
    made = board()
    made.next_step = 1
    group = in_flight(0, version=1)
    group.samples[0] = make_sample(0, version=0)
    made.add(group)
    for admission in (1, 2):
        made.restore(make_accepted(admission))
    assert made.choose().wait_for == [group]


def test_a_doomed_group_is_waited_for_no_longer() -> None:
    made = board()
    made.next_step = 1
    group = in_flight(0, version=0)
    group.doomed = True
    made.add(group)
    for admission in (1, 2):
        made.restore(make_accepted(admission))
    assert made.choose().wait_for == []


def test_every_removal_frees_the_ranks_behind_it() -> None:
    made = board()
    groups = [in_flight(admission) for admission in range(3)]
    for group in groups:
        made.add(group)
    assert made.rank(2) == 2
    made.remove(groups[0])
    assert made.rank(2) == 1


def test_as_many_groups_start_ahead_of_the_verdicts_as_the_acceptance_foretells() -> None:
    made = Board(
        train_batch_size=4,
        gen_batch_size=100,
        max_staleness=1,
        acceptance=Acceptance(confidence=0.5, train_batch_size=4),
    )
    made.next_step = 1  # version 0 is held: four groups whatever the verdicts

    def start() -> int:
        """The groups that may be live."""
        while made.may_start(admission=len(made.open) + len(made.queued), version=0):
            made.add(in_flight(len(made.open) + len(made.queued)))
        return len(made.open) + len(made.queued)

    assert start() == 4, "without evidence every group counts as kept"
    for verdict in range(100):
        made.judge(kept=verdict % 2 == 1)
    assert start() == 7, "at a half, 3.5 of seven are kept, which is as likely as not fewer than four"
    made.accept(made.open["g0"], make_accepted(0))
    made.accept(made.open["g1"], make_accepted(1))
    assert start() == 7, "two kept and five in flight: 4.5"
    assert [made.may_go_on(admission=6, version=version) for version in (-1, 0)] == [False, True]
    assert made.rank(7) == 7, "the rank that the age bound is proved with stays"


def test_a_group_that_started_ahead_is_one_too_many_and_a_doomed_one_too_slow() -> None:
    slow, plain = in_flight(0), board()
    ahead = Board(
        train_batch_size=2,
        gen_batch_size=4,
        max_staleness=1,
        acceptance=Acceptance(confidence=0.5, train_batch_size=2),
    )
    assert [made.term_of_late(slow) for made in (plain, ahead, board(staleness=0))] == ["stale", "surplus", "surplus"]
    slow.doomed = True
    assert [made.term_of_late(slow) for made in (plain, ahead)] == ["stale", "stale"]


def starving_board(*, judged: int, staleness: int = 1) -> Board:
    """One accepted group of four after `judged` verdicts; it may be trained as it is after six."""
    made = board(batch=4, staleness=staleness, partial_after=6)
    made.restore(make_accepted(0))
    made.verdicts = judged
    return made


def test_a_starving_batch_goes_with_what_it_has_after_so_many_verdicts_and_never_empty() -> None:
    assert not starving_board(judged=5).choose().ready
    choice = starving_board(judged=6).choose()
    assert choice.ready
    assert [group.admission for group in choice.chosen] == [0]
    made = starving_board(judged=6)
    made.remove(made.queued["g0"])
    assert not made.choose().ready


def test_a_batch_that_is_not_full_also_waits_for_groups_behind_it_that_only_it_can_train() -> None:
    made = starving_board(judged=6)
    made.next_step = 1
    made.add(in_flight(5, version=0))
    made.add(in_flight(6, version=1))
    assert [group.admission for group in made.choose().wait_for] == [5]


def test_nothing_starts_while_a_learner_waits_for_a_batch_that_goes_as_it_is() -> None:
    made = starving_board(judged=6)
    assert made.has_room()
    made.asked = 0
    assert not made.has_room()
    made.verdicts = 5
    assert made.has_room()
