"""The task of two turns: demonstrations of known shares, questions that stay in their split, and calls in plain text."""

import random

import pytest

from sluice.environments import Message, Row
from sluice.tasks import products
from sluice.tasks.products_in_text import ProductsInText
from sluice.tasks.splits import SPLITS, split_of


def test_a_good_episode_asks_for_the_product_and_states_it():
    opening, call, told, last = products.good_episode("What is 4821*7693?")
    assert (opening.by_policy, call.by_policy, told.by_policy, last.by_policy) == (False, True, False, True)
    assert '{"name": "calculate", "arguments": {"expression": "4821*7693"}}' in call.text
    assert "37087953" in told.text
    assert last.text == "Answer: 37087953<|im_end|>"


def test_seven_tenths_of_the_demonstrations_answer_at_once_and_four_tenths_of_the_others_spoil_a_digit():
    rng = random.Random(0)
    shown = [products.demonstration("What is 4821*7693?", rng) for _ in range(4000)]
    asked = [parts for parts in shown if len(parts) == 4]
    assert abs(len(asked) / 4000 - 0.3) < 0.03
    spoilt = [parts[-1].text for parts in asked if parts[-1].text != "Answer: 37087953<|im_end|>"]
    assert abs(len(spoilt) / len(asked) - 0.4) < 0.04
    for text in spoilt:
        assert sum(one != other for one, other in zip(text, "Answer: 37087953<|im_end|>", strict=True)) == 1
    assert {parts[-1].text for parts in shown if len(parts) == 2} == {"Answer: 37087953<|im_end|>"}


def test_the_vocabulary_has_a_token_for_whatever_the_calculator_says():
    assert len(set(products.VOCABULARY)) == len(products.VOCABULARY)
    assert {"\n", *map(chr, range(32, 127))} <= set(products.VOCABULARY)


@pytest.mark.parametrize("split", SPLITS)
def test_a_question_stays_in_its_split_and_depends_on_seed_and_index_alone(split):
    asked = [products.question_at(seed=3, index=index, split=split) for index in range(50)]
    assert {split_of(question) for question in asked} == {split}
    assert asked[7] == products.question_at(seed=3, index=7, split=split)
    assert len(set(asked)) == 50


def test_what_is_no_question_of_the_task_is_refused():
    with pytest.raises(ValueError, match=r"looks like 'What is 4821\*7693\?', got 'What is 4\+7\?'"):
        products.answer("What is 4+7?")
    with pytest.raises(ValueError, match="split must be one of train, held_out, fresh, got 'test'"):
        products.question_at(seed=0, index=0, split="test")
    with pytest.raises(ValueError, match="index must be >= 0, got -1"):
        products.question_at(seed=0, index=-1, split="train")


def opened() -> ProductsInText:
    environment = ProductsInText()
    messages = (Message(role="user", content="What is 4821*7693?"),)
    row = Row(
        messages=messages,
        data_source="products",
        ground_truth="37087953",
        extra_info={},
        arguments={},
        seed=0,
        max_turns=2,
    )
    assert environment.open(row)[-1] == messages[0]
    return environment


@pytest.mark.parametrize(
    ("turns", "score", "asked"),
    [
        (["calc(4821*7693)", "Answer: 37087953"], 1.0, 1.0),
        (["calc(4821 * 7693)", "answer: 37087953."], 1.0, 1.0),
        (["calc(4821*7693)", "Answer: 37087954"], 0.0, 1.0),
        (["calc(4821*7693)", "calc(4821*7693)"], 0.0, 1.0),
        (["calc(4822*7693)", "Answer: 37095646"], 0.0, 1.0),
        (["Answer: 37087953"], 1.0, 0.0),
        (["I do not know 37087953"], 0.0, 0.0),
    ],
)
def test_a_call_in_plain_text_is_answered_once_and_the_last_turn_scores(turns, score, asked):
    environment = opened()
    replies = [environment.step(Message(role="assistant", content=turn)) for turn in turns]
    assert all(isinstance(reply, str) for reply in replies[:-1])
    assert replies[-1].done
    assert (replies[-1].score.score, replies[-1].score.parts) == (score, {"asked": asked})
