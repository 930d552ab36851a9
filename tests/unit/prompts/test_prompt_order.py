"""The order of prompts is a pure function of seed and epoch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.prompts.order import row_index

sizes = st.integers(min_value=1, max_value=60)
seeds = st.integers(min_value=0, max_value=2**40)


def order(positions: range, *, size: int, seed: int, shuffle: bool = True) -> list[int]:
    return [row_index(position, size=size, seed=seed, shuffle=shuffle)[1] for position in positions]


@given(size=sizes, seed=seeds, epoch=st.integers(min_value=0, max_value=5))
def test_every_epoch_visits_every_row_once(size: int, seed: int, epoch: int) -> None:
    positions = range(epoch * size, (epoch + 1) * size)
    assert sorted(order(positions, size=size, seed=seed)) == list(range(size))
    assert {row_index(position, size=size, seed=seed, shuffle=True)[0] for position in positions} == {epoch}


@given(size=sizes, seed=seeds, start=st.integers(min_value=0, max_value=200), other=seeds)
def test_a_restart_at_any_position_goes_on_as_before(size: int, seed: int, start: int, other: int) -> None:
    whole = order(range(start + 20), size=size, seed=seed)
    order(range(5), size=size + 1, seed=other)  # another order in between must leave no trace
    assert order(range(start, start + 20), size=size, seed=seed) == whole[start:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = order(range(50), size=50, seed=1)
    assert order(range(50, 100), size=50, seed=1) != first
    assert order(range(50), size=50, seed=2) != first


def test_the_order_is_the_same_on_every_machine() -> None:
    assert order(range(10), size=10, seed=7) == [6, 3, 4, 9, 0, 2, 8, 7, 5, 1]


def test_every_row_is_equally_likely_to_come_first() -> None:
    firsts = [row_index(0, size=4, seed=seed, shuffle=True)[1] for seed in range(400)]
    assert all(70 <= firsts.count(row) <= 130 for row in range(4))  # 100 expected, standard deviation 8.7


def test_without_shuffling_rows_come_as_they_are_stored() -> None:
    assert order(range(7), size=3, seed=5, shuffle=False) == [0, 1, 2, 0, 1, 2, 0]


def test_an_endless_source_is_one_epoch_in_order() -> None:
    assert row_index(10**12, size=None, seed=5, shuffle=True) == (0, 10**12)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(ValueError, match="position: must be >= 0, got -1"):
        row_index(-1, size=3, seed=0, shuffle=True)
