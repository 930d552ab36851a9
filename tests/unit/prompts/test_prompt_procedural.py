"""Endless sources: the same row in every process, and held-out prompts that are never trained."""

import json

import pytest

from services.coordinator.prompts.named_sources import open_source
from services.coordinator.prompts.procedural import Mixadd3Source, ReasoningGymSource
from sluice.errors import DataError
from sluice.tasks import mixadd3, products


def test_mixadd3_rows_carry_the_sum() -> None:
    source = open_source(["mixadd3:train"], seed=3, held_out=False)
    row = source.row(17)
    assert source.size is None
    assert row.data_source == "mixadd3"
    assert row.prompt == mixadd3.prompt_at(seed=3, index=17, split="train")
    assert row.ground_truth == mixadd3.answer(str(row.prompt))


@pytest.mark.parametrize("split", ["held_out", "fresh"])
def test_mixadd3_evaluates_on_prompts_that_are_never_trained(split: str) -> None:
    source = open_source([f"mixadd3:{split}"], seed=0, held_out=True)
    assert {mixadd3.split_of(str(source.row(index).prompt)) for index in range(50)} == {split}
    assert source.describe() == {"source": f"mixadd3:{split}"}


def test_products_are_chats_that_carry_the_product_and_no_run_trains_on_what_it_evaluates() -> None:
    row = open_source(["products:train"], seed=3, held_out=False).row(17)
    (question,) = row.prompt
    assert (row.data_source, question.role) == ("products", "user")  # type: ignore[union-attr]
    assert question.content == products.question_at(seed=3, index=17, split="train")  # type: ignore[union-attr]
    assert row.ground_truth == products.answer(question.content)  # type: ignore[union-attr]
    assert open_source(["products:fresh"], seed=0, held_out=True).describe() == {"source": "products:fresh"}
    with pytest.raises(DataError, match=r"data.train_files: products:SPLIT must be one of train here, got 'fresh'"):
        open_source(["products:fresh"], seed=0, held_out=False)


@pytest.mark.needs("reasoning-gym")
def test_a_reasoning_gym_row_carries_the_whole_entry_for_the_grader() -> None:
    import reasoning_gym

    source = open_source(["reasoning-gym:basic_arithmetic"], seed=0, held_out=False)
    row = source.row(5)
    entry = json.loads(row.ground_truth)
    assert row.data_source == "reasoning_gym/basic_arithmetic"
    assert row.prompt[0].content.startswith(entry["question"])  # type: ignore[union-attr]
    assert "<answer>" in row.prompt[0].content  # type: ignore[union-attr]
    assert reasoning_gym.get_score_answer_fn("basic_arithmetic")(entry["answer"], entry) == 1.0


@pytest.mark.needs("reasoning-gym")
def test_reasoning_gym_rows_depend_on_seed_and_index_alone() -> None:
    source = ReasoningGymSource(task="basic_arithmetic", seed=1, held_out=False)
    rows = [source.row(index) for index in (0, 1, 5000)]
    again = ReasoningGymSource(task="basic_arithmetic", seed=1, held_out=False)
    assert [again.row(index) for index in (5000, 0, 1)] == [rows[2], rows[0], rows[1]]
    assert len({row.prompt_id for row in rows}) == 3
    assert ReasoningGymSource(task="basic_arithmetic", seed=2, held_out=False).row(0) != rows[0]


@pytest.mark.needs("reasoning-gym")
def test_reasoning_gym_never_trains_on_a_held_out_prompt_whatever_the_seeds() -> None:
    # A task with few prompts: both sides come upon the same ones.
    task = "coin_flip"
    trained = {
        ReasoningGymSource(task=task, seed=seed, held_out=False).row(i).prompt_id for seed in (0, 1) for i in range(40)
    }
    held_out = {ReasoningGymSource(task=task, seed=0, held_out=True).row(i).prompt_id for i in range(10)}
    assert not trained & held_out


@pytest.mark.needs("reasoning-gym")
@pytest.mark.parametrize(
    ("task", "message"),
    [("no_such_task", "reasoning-gym:no_such_task: "), ("composite", "reasoning-gym:composite: ")],
)
def test_a_task_that_cannot_be_made_is_refused_by_name(task: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ReasoningGymSource(task=task, seed=0, held_out=False).row(0)


def test_sources_are_values() -> None:
    assert Mixadd3Source(split="train", seed=1) == open_source(["mixadd3:train"], seed=1, held_out=False)
