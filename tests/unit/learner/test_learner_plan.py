"""Planning of mini-batches and micro-batches."""

from itertools import chain, groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from services.learner.batches.step_plan import MiniBatch, plan_step

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


@st.composite
def _sharing_cases(draw: st.DrawFn) -> dict:
    case = draw(_cases()) | {"rows": False}
    n = case["group_sizes"][0]
    prompts = [draw(LENGTHS) for _ in case["group_sizes"]]
    case["prompts"] = [prompts[index // n] for index in range(len(case["lengths"]))]
    case["lengths"] = [prompt + own - 1 for prompt, own in zip(case["prompts"], case["lengths"], strict=True)]
    return case


@settings(max_examples=80, deadline=None)
@given(case=_cases() | _sharing_cases())
def test_every_trained_sequence_is_planned_exactly_once_and_every_rank_has_as_many_micro_batches(case: dict) -> None:
    plan = plan_step(**case)
    assert list(chain(*(mini.sequences for mini in plan))) == list(range(len(case["lengths"])))
    for mini in plan:
        assert len(mini.micro_batches) == case["ranks"]
        assert len({len(rank) for rank in mini.micro_batches}) == 1
        planned = sorted(chain(*(micro for rank in mini.micro_batches for micro in rank)))
        assert planned == [s for s in mini.sequences if case["trained"][s]]


@settings(max_examples=80, deadline=None)
@given(case=_cases())
def test_the_token_budget_holds_except_for_a_sequence_alone(case: dict) -> None:
    for micro in _micro_batches(plan_step(**case)):
        lengths = [case["lengths"][s] for s in micro]
        tokens = len(lengths) * max(lengths, default=0) if case["rows"] else sum(lengths)
        assert tokens <= case["max_tokens"] or len(micro) == 1


@settings(max_examples=80, deadline=None)
@given(case=_sharing_cases())
def test_a_shared_prompt_counts_once_a_micro_batch_in_the_budget_and_in_the_tokens_saved(case: dict) -> None:
    n, prompts, lengths = case["group_sizes"][0], case["prompts"], case["lengths"]
    for mini in plan_step(**case):
        if not mini.saved_tokens:
            continue
        computed = 0
        for micro in chain(*mini.micro_batches):
            groups = [s // n for s in micro]
            assert sorted(set(groups), key=groups.index) == [group for group, _ in groupby(groups)]
            own = {s: lengths[s] - prompts[s] for s in micro}
            tokens = sum(own.values()) + sum(prompts[group * n] for group in set(groups))
            assert tokens <= case["max_tokens"] or sum(size > 0 for size in own.values()) <= 1
            heads = [prompts[group * n] for group, _ in groupby(groups)]
            assert heads == sorted(heads, reverse=True)
            for _, members in groupby(micro, key=lambda s: s // n):
                sizes = [own[s] for s in members]
                assert sizes == sorted(sizes, reverse=True)
            computed += tokens
        assert mini.saved_tokens == sum(lengths[s] for s in mini.sequences if case["trained"][s]) - computed


def test_a_group_stays_together_where_it_fits_and_is_cut_where_a_rank_would_be_idle() -> None:
    case = {
        "group_sizes": [4],
        "lengths": [13] * 4,
        "trained": [True] * 4,
        "groups_per_mini_batch": 1,
        "max_tokens": 64,
    }
    (alone,) = plan_step(**case, prompts=[10] * 4, ranks=1)
    assert (alone.micro_batches, alone.saved_tokens) == ((((0, 1, 2, 3),),), 30)
    (two,) = plan_step(**case, prompts=[10] * 4, ranks=2)
    assert (two.micro_batches, two.saved_tokens) == ((((0, 2),), ((1, 3),)), 20)


def test_prompts_that_are_short_beside_the_answers_are_not_shared() -> None:
    case = {"group_sizes": [4], "lengths": [101] * 4, "trained": [True] * 4, "groups_per_mini_batch": 1}
    (mini,) = plan_step(**case, prompts=[2] * 4, ranks=1, max_tokens=1000)
    assert mini.saved_tokens == 0


@settings(max_examples=40, deadline=None)
@given(case=_cases() | _sharing_cases())
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
