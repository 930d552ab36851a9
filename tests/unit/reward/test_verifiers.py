"""The demo task's and reasoning-gym's verifiers."""

import json

import pytest

from services.reward.ports import Question
from services.reward.verifiers import mixadd3, reasoning_gym


def question(data_source, ground_truth):
    return Question(data_source=data_source, prompt_text="", ground_truth=ground_truth, extra_info={})


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        ("7+8+0=15;6+5+1=12#125", True, (1.0, 1.0, "125", "ok")),
        ("#125", False, (0.0, 0.0, "125", "ok")),
        ("#126", True, (0.0, 0.0, "126", "ok")),
        ("125", True, (0.0, 0.0, "", "unparsed")),
    ],
)
def test_mixadd3_scores_one_or_nothing(text, finished, expected):
    grade = mixadd3.grade(question=question("mixadd3", "125"), text=text, finished=finished)
    assert (grade.raw_score, grade.acc, grade.extracted, grade.status) == expected


@pytest.fixture(scope="module")
def chain_sum():
    """An entry of reasoning-gym's chain_sum and its question."""
    import reasoning_gym as library

    entry = library.create_dataset("chain_sum", seed=1, size=1)[0]
    return entry, question("reasoning_gym/chain_sum", json.dumps(entry))


@pytest.mark.needs("reasoning-gym")
def test_reasoning_gym_takes_the_last_tagged_answer(chain_sum):
    entry, asked = chain_sum
    text = f"<answer>0</answer> no, <answer>\n{entry['answer']}\n</answer> it is"
    grade = reasoning_gym.grade(question=asked, text=text, finished=True)
    assert (grade.raw_score, grade.acc, grade.extracted) == (1.0, 1.0, entry["answer"])


@pytest.mark.needs("reasoning-gym")
def test_reasoning_gym_takes_the_whole_completion_without_tags(chain_sum):
    entry, asked = chain_sum
    assert reasoning_gym.grade(question=asked, text=f" {entry['answer']}\n", finished=True).acc == 1.0


@pytest.mark.needs("reasoning-gym")
def test_reasoning_gym_partial_credit_is_not_right(chain_sum):
    entry, asked = chain_sum
    grade = reasoning_gym.grade(question=asked, text=f"about {entry['answer']} or so", finished=True)
    assert 0.0 < grade.raw_score < 1.0
    assert grade.acc == 0.0


@pytest.mark.needs("reasoning-gym")
@pytest.mark.parametrize("text", ["", "  \n", "<answer></answer>"])
def test_reasoning_gym_without_an_answer_is_unparsed(chain_sum, text):
    grade = reasoning_gym.grade(question=chain_sum[1], text=text, finished=True)
    assert (grade.raw_score, grade.acc, grade.status) == (0.0, 0.0, "unparsed")
