"""Planning of mini-batches and micro-batches."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from services.learner.batches.plan import MiniBatch, plan_step

LENGTHS = st.integers(1, 40)


@st.composite
def _cases(draw: st.DrawFn) -> dict:
    groups, n, ranks = draw(st.integers(1, 17)), draw(st.integers(2, 9)), draw(st.integers(1, 3))
    total = groups * n
    return {
        "group_sizes": [n] * groups,
        "lengths": draw(st.lists(LENGTHS, min_size=total, max_size=total)),
        "trained": draw(st.lists(st.booleans(), min_size=total, max_size=total)),
        "groups_per_mini_batch": draw(st.integers(1, 20)),
        "ranks": ranks,
        "max_tokens": draw(st.integers(1, 100)),
        "rows": draw(st.booleans()),
    }


@settings(max_examples=200, deadline=None)
@given(case=_cases())
def test_every_trained_sequence_is_planned_exactly_once_and_every_rank_has_as_many_micro_batches(case: dict) -> None:
    plan = plan_step(**case)
    assert list(chain(*(mini.sequences for mini in plan))) == list(range(len(case["lengths"])))
    for mini in plan:
        assert len(mini.micro_batches) == case["ranks"]
        assert len({len(rank) for rank in mini.micro_batches}) == 1
        planned = sorted(chain(*(micro for rank in mini.micro_batches for micro in rank)))
        assert planned == [s for s in mini.sequences if case["trained"][s]]


@settings(max_examples=200, deadline=None)
@given(case=_cases())
def test_the_token_budget_holds_except_for_a_sequence_alone(case: dict) -> None:
    for micro in _micro_batches(plan_step(**case)):
        lengths = [case["lengths"][s] for s in micro]
        tokens = len(lengths) * max(lengths, default=0) if case["rows"] else sum(lengths)
        assert tokens <= case["max_tokens"] or len(micro) == 1


@settings(max_examples=100, deadline=None)
@given(case=_cases())
def test_the_same_input_gives_the_same_plan(case: dict) -> None:
    assert plan_step(**case) == plan_step(**case)


def test_mini_batches_hold_whole_groups_and_the_last_one_may_be_smaller() -> None:
    plan = plan_step(
        group_sizes=[2, 3, 1], lengths=[5] * 6, trained=[True] * 6, groups_per_mini_batch=2, ranks=1, max_tokens=100
    )
    assert [mini.sequences for mini in plan] == [(0, 1, 2, 3, 4), (5,)]


def test_lengths_are_balanced_longest_first() -> None:
    (mini,) = plan_step(
        group_sizes=[4], lengths=[2, 9, 8, 3], trained=[True] * 4, groups_per_mini_batch=1, ranks=2, max_tokens=16
    )
    assert mini.micro_batches == (((1, 0),), ((2, 3),))


def test_rows_of_like_length_share_a_micro_batch_and_padding_counts() -> None:
    (mini,) = plan_step(
        group_sizes=[5],
        lengths=[2, 9, 8, 3, 3],
        trained=[True] * 5,
        groups_per_mini_batch=1,
        ranks=2,
        max_tokens=18,
        rows=True,
    )
    assert mini.micro_batches == (((1, 2),), ((3, 4, 0),))


def test_a_rank_without_work_gets_empty_micro_batches() -> None:
    (mini,) = plan_step(group_sizes=[1], lengths=[7], trained=[True], groups_per_mini_batch=1, ranks=3, max_tokens=16)
    assert mini.micro_batches == (((0,),), ((),), ((),))


def test_a_mini_batch_whose_sequences_are_all_masked_has_no_micro_batch() -> None:
    (mini,) = plan_step(
        group_sizes=[2], lengths=[7, 7], trained=[False] * 2, groups_per_mini_batch=1, ranks=2, max_tokens=16
    )
    assert mini.micro_batches == ((), ())


def _micro_batches(plan: tuple[MiniBatch, ...]) -> list[tuple[int, ...]]:
    return [micro for mini in plan for rank in mini.micro_batches for micro in rank]
