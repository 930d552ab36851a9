"""The task of demo-llm: the rows that a user would write, the same ones each time, and none that is in both splits."""

import json
import re

import pytest

from services.reward.ports import Question
from services.reward.verifiers import numeric
from sluice.tasks import sums

SPLITS = tuple(sums.ROWS)


def operands(row) -> tuple[int, int]:
    asked = re.fullmatch(r"What is (\d+) \+ (\d+)\?", row["prompt"][-1]["content"])
    return int(asked[1]), int(asked[2])


def test_no_sum_is_in_both_splits_nor_the_example_in_any_and_their_order_does_not_matter():
    pairs = {split: {tuple(sorted(operands(row))) for row in sums.rows(split)} for split in SPLITS}
    assert not pairs["train"] & pairs["held_out"]
    assert (14, 38) not in pairs["train"] | pairs["held_out"]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_its_number_of_rows_and_none_twice(split):
    assert len({operands(row) for row in sums.rows(split)}) == len(sums.rows(split)) == sums.ROWS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_operands_have_one_digit_or_two_and_both_are_common(split):
    numbers = [number for row in sums.rows(split) for number in operands(row)]
    assert 0 <= min(numbers) < max(numbers) <= 99
    assert 0.3 < sum(number < 10 for number in numbers) / len(numbers) < 0.5


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_verls_columns_and_the_right_answer(split):
    for index, row in enumerate(sums.rows(split)):
        assert list(row) == ["data_source", "prompt", "reward_model", "extra_info"]
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(sum(operands(row)))}
        assert row["extra_info"] == {"split": split, "index": index}
        assert [message["role"] for message in row["prompt"]] == ["system", "user", "assistant", "user"]
    assert sums.rows(split)[0]["data_source"] == "sums"


@pytest.mark.parametrize("split", SPLITS)
def test_the_text_of_the_file_is_the_same_each_time_and_reads_back_as_the_rows(split):
    assert sums.json_lines(split) == sums.json_lines(split)
    assert [json.loads(line) for line in sums.json_lines(split).splitlines()] == sums.rows(split)


def test_the_first_prompts_are_those_that_were_measured():
    assert [operands(row) for row in sums.rows("held_out")[:3]] == [(6, 93), (6, 65), (5, 7)]


@pytest.mark.parametrize(
    ("said", "right"), [("27 + 45 = 72", 1.0), ("72", 1.0), ("27 + 45", 0.0), ("27 + 45 = 62", 0.0), ("It is 72", 0.0)]
)
def test_the_grader_of_the_recipe_reads_the_end_of_an_equation_and_not_the_question_said_again(said, right):
    question = Question(data_source="sums", prompt_text="", ground_truth="72", extra_info={})
    assert numeric.grade(question=question, text=said, finished=True).acc == right
