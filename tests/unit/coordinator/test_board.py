"""Which groups make up the next batch, and for whom it waits."""

from services.coordinator.board import Board
from services.coordinator.model import Group, QueuedGroup
from tests.unit.coordinator.fakes import FakePrompt, make_sample


def accepted(admission: int, *, oldest: int = 0) -> QueuedGroup:
    return QueuedGroup(
        group_id=f"g{admission}",
        admission=admission,
        oldest_version=oldest,
        tokens=1,
        payload_bytes=1,
        prompt_id="p",
        attempt=1,
        shaped_mean=0.0,
    )


def in_flight(admission: int, *, version: int = 0) -> Group:
    prompt = FakePrompt(prompt_id=f"p{admission}")
    return Group(group_id=f"g{admission}", admission=admission, prompt=prompt, cursor="", start_version=version)


def board(*, batch: int = 2, staleness: int = 1) -> Board:
    return Board(train_batch_size=batch, gen_batch_size=2 * batch, max_staleness=staleness)


def test_a_batch_takes_accepted_groups_in_admission_order_not_completion_order() -> None:
    made = board()
    for admission in (5, 1, 3):
        made.restore(accepted(admission))
    assert [group.admission for group in made.choose().chosen] == [1, 3]


def test_a_group_older_than_the_bound_is_expired_not_chosen() -> None:
    made = board()
    made.next_step = 2
    for admission, oldest in ((0, 0), (1, 1), (2, 2)):
        made.restore(accepted(admission, oldest=oldest))
    choice = made.choose()
    assert [group.admission for group in choice.expired] == [0]
    assert [group.admission for group in choice.chosen] == [1, 2]


def test_the_batch_waits_for_a_slow_group_that_no_later_batch_could_train() -> None:
    made = board()
    made.next_step = 1
    made.add(in_flight(0, version=0))
    for admission in (1, 2):
        made.restore(accepted(admission))
    assert [group.admission for group in made.choose().wait_for] == [0]


def test_it_does_not_wait_for_a_group_that_the_next_batch_can_still_train() -> None:
    made = board()
    made.next_step = 1
    made.add(in_flight(0, version=1))
    for admission in (1, 2):
        made.restore(accepted(admission))
    assert made.choose().wait_for == []


def test_it_does_not_wait_for_groups_admitted_after_the_batch() -> None:
    made = board()
    made.next_step = 1
    for admission in (0, 1):
        made.restore(accepted(admission))
    made.add(in_flight(2, version=0))
    assert made.choose().wait_for == []


def test_surviving_samples_of_a_retried_group_count_for_its_age() -> None:
    made = board()
    made.next_step = 1
    group = in_flight(0, version=1)
    group.samples[0] = make_sample(0, version=0)
    made.add(group)
    for admission in (1, 2):
        made.restore(accepted(admission))
    assert made.choose().wait_for == [group]


def test_a_doomed_group_is_waited_for_no_longer() -> None:
    made = board()
    made.next_step = 1
    group = in_flight(0, version=0)
    group.doomed = True
    made.add(group)
    for admission in (1, 2):
        made.restore(accepted(admission))
    assert made.choose().wait_for == []


def test_every_removal_frees_the_ranks_behind_it() -> None:
    made = board()
    groups = [in_flight(admission) for admission in range(3)]
    for group in groups:
        made.add(group)
    assert made.rank(2) == 2
    made.remove(groups[0])
    assert made.rank(2) == 1
