"""The age of tokens and the gate that bounds it."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.dapo.staleness import age, may_start


def test_age_counts_steps_between_sampling_and_training() -> None:
    assert age(step=7, version=7) == 0
    assert age(step=7, version=4) == 3
    with pytest.raises(ValueError, match="got version 8 and step 7"):
        age(step=7, version=8)


@pytest.mark.parametrize(
    ("rank", "next_step", "version", "may"),
    [
        (7, 4, 4, True),  # trained by step 5 at the latest: age 1
        (8, 4, 4, False),  # step 6: age 2
        (3, 4, 3, True),
        (4, 4, 3, False),
        (0, 4, 2, False),  # too old a rollout for any group
    ],
)
def test_admission_by_hand_with_batches_of_four_and_one_step_of_staleness(
    rank: int, next_step: int, version: int, may: bool
) -> None:
    assert may == may_start(
        rank=rank, next_step=next_step, version=version, train_batch_size=4, max_staleness=1, gen_batch_size=8
    )


def test_synchronous_runs_over_generate_up_to_the_generation_batch_on_the_newest_version_only() -> None:
    gate = partial(may_start, next_step=3, train_batch_size=4, max_staleness=0, gen_batch_size=6)
    assert [gate(rank=rank, version=3) for rank in range(8)] == [True] * 6 + [False] * 2
    assert not gate(rank=0, version=2)


def test_asynchronous_runs_carry_surplus_over_and_never_over_generate() -> None:
    assert not may_start(rank=8, next_step=0, version=0, train_batch_size=4, max_staleness=1, gen_batch_size=100)


@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 20), st.integers(1, 8), st.integers(0, 4))
def test_a_lower_rank_and_a_newer_version_never_close_the_gate(
    rank: int, next_step: int, version: int, batch: int, staleness: int
) -> None:
    def gate(rank: int, version: int) -> bool:
        return may_start(
            rank=rank,
            next_step=next_step,
            version=version,
            train_batch_size=batch,
            max_staleness=staleness,
            gen_batch_size=2 * batch,
        )

    if gate(rank, version):
        assert gate(max(rank - 1, 0), version)
        assert gate(rank, version + 1)
