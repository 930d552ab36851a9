"""The demo task: worked examples, splits, and a verifier that right demonstrations pass."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.tasks import mixadd3

numbers = st.integers(min_value=0, max_value=999)


def test_the_vocabulary_has_64_distinct_tokens_and_covers_every_text_of_the_task():
    assert len(set(mixadd3.VOCABULARY)) == len(mixadd3.VOCABULARY) == 64
    rng = random.Random(0)
    texts = [prompt + mixadd3.demonstration(prompt, rng) for prompt in (mixadd3.prompt(rng) for _ in range(200))]
    assert set("".join(texts)) <= set(mixadd3.VOCABULARY)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("67+58=", "7+8+0=15;6+5+1=12#125"),
        ("478+67=", "8+7+0=15;7+6+1=14;4+0+1=05#545"),
        ("2+4=", "2+4+0=06#6"),
        ("999+1=", "9+1+0=10;9+0+1=10;9+0+1=10#1000"),
    ],
)
def test_worked_examples_are_as_by_hand(prompt, completion):
    assert mixadd3.addcot3_demonstration(prompt) == completion


@given(a=numbers, b=numbers, seed=st.integers())
def test_every_demonstration_verifies_and_fits_the_context(a, b, seed):
    prompt = f"{a}+{b}="
    completion = mixadd3.demonstration(prompt, random.Random(seed))
    assert mixadd3.verify(ground_truth=str(a + b), completion=completion, finished=True) == (True, str(a + b))
    assert len(prompt) + len(completion) + 1 <= 128


def test_demonstrations_are_a_quarter_guesses_and_three_tenths_rambling():
    rng = random.Random(0)
    passes = [mixadd3.demonstration("67+58=", rng).count("7+8+0") for _ in range(4000)]
    assert abs(passes.count(0) / 4000 - 0.25) < 0.03
    assert abs(passes.count(1) / 4000 - 0.45) < 0.03
    assert abs(passes.count(2) / 4000 - 0.30 * 0.6) < 0.03
    assert max(passes) == 4


@pytest.mark.parametrize(
    ("completion", "finished", "expected"),
    [
        ("#125", True, (True, "125")),
        ("#124#125", True, (True, "125")),
        ("#125#124", True, (False, "124")),
        ("#125", False, (False, "125")),
        ("#0125", True, (False, "0125")),
        ("#125 ", True, (False, "125 ")),
        ("#", True, (False, "")),
        ("125", True, (False, None)),
        ("", True, (False, None)),
    ],
)
def test_only_the_text_after_the_last_mark_of_a_finished_completion_counts(completion, finished, expected):
    assert mixadd3.verify(ground_truth="125", completion=completion, finished=finished) == expected


def test_prompts_are_a_pure_function_of_seed_index_and_split():
    first = [mixadd3.prompt_at(seed=3, index=index, split="train") for index in range(20)]
    again = [mixadd3.prompt_at(seed=3, index=index, split="train") for index in reversed(range(20))]
    assert first == again[::-1]
    assert first != [mixadd3.prompt_at(seed=4, index=index, split="train") for index in range(20)]
    # Pinned: a change here makes other runs of every recorded seed.
    assert first[:3] == ["4+558=", "5+406=", "4+182="]


@given(seed=st.integers(min_value=0), index=st.integers(min_value=0), split=st.sampled_from(mixadd3.SPLITS))
def test_a_prompt_is_of_the_split_it_was_asked_for(seed, index, split):
    prompt = mixadd3.prompt_at(seed=seed, index=index, split=split)
    assert mixadd3.split_of(prompt) == split
    assert mixadd3.answer(prompt).isdecimal()


def test_three_quarters_of_prompts_are_for_training_and_an_eighth_each_held_out_and_fresh():
    splits = [mixadd3.split_of(f"{a}+{b}=") for a in range(100) for b in range(100)]
    assert abs(splits.count("train") / 10_000 - 6 / 8) < 0.02
    assert abs(splits.count("held_out") / 10_000 - 1 / 8) < 0.02


def test_the_number_of_digits_is_uniform():
    rng = random.Random(0)
    lengths = [len(mixadd3.prompt(rng).partition("+")[0]) for _ in range(3000)]
    assert all(abs(lengths.count(digits) / 3000 - 1 / 3) < 0.04 for digits in (1, 2, 3))


@pytest.mark.parametrize("text", ["", "67+58", "67-58=", "+5=", "a+b=", "67+58= "])
def test_what_is_not_a_prompt_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match="a prompt looks like"):
        mixadd3.answer(text)


def test_an_unknown_split_and_a_negative_index_are_refused():
    with pytest.raises(ValueError, match="train, held_out, fresh"):
        mixadd3.prompt_at(seed=0, index=0, split="test")
    with pytest.raises(ValueError, match="index"):
        mixadd3.prompt_at(seed=0, index=-1, split="train")
