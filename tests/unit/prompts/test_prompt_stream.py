"""The stream of prompts: order, restarts, prompts that are too long, the fixed set of an evaluation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.coordinator.prompts import PromptStream
from sluice.config.load import load_config
from sluice.errors import DataError
from tests.unit.prompts.prompt_cases import ListSource, character_tokenizer, stream_of

TEN = ListSource([str(i) for i in range(10)])


@pytest.fixture(scope="module", autouse=True)
def _tokenizers_are_warm() -> None:
    stream_of(TEN).next(0)


def drawn(stream: PromptStream, position: int, count: int) -> list[tuple[str, int]]:
    taken = []
    for _ in range(count):
        prompt, position = stream.next(position)
        taken.append((prompt.text, position))
    return taken


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), seed=st.integers(0, 1000), restart=st.integers(0, 30)
)
def test_a_restart_at_any_cursor_draws_the_same_prompts(lengths: list[int], seed: int, restart: int) -> None:
    source = ListSource([f"{i:x}" * n for i, n in enumerate(lengths)] + ["z"])
    whole = drawn(stream_of(source, seed=seed, max_prompt_length=3), 0, 32)
    cursor = whole[restart][1]
    assert drawn(stream_of(source, seed=seed, max_prompt_length=3), cursor, 1)[0] == whole[restart + 1]


def test_an_epoch_gives_every_prompt_that_fits_once() -> None:
    texts = [text for text, _ in drawn(stream_of(TEN), 0, 10)]
    assert sorted(texts) == sorted(TEN.prompts)
    assert texts != list(TEN.prompts)


def test_prompts_that_are_too_long_are_skipped_and_counted() -> None:
    source = ListSource(["1", "22", "333", "4444", "55"])
    stream = stream_of(source, shuffle=False, max_prompt_length=2)
    assert drawn(stream, 0, 4) == [("1", 1), ("22", 2), ("55", 5), ("1", 6)]
    assert stream.too_long == 2


def test_the_place_of_a_drawn_prompt_names_its_row_and_epoch_also_after_skips() -> None:
    source = ListSource(["1", "22", "333", "4444", "55"])
    stream = stream_of(source, seed=3, max_prompt_length=2)
    position = 0
    for count in range(9):
        prompt, position = stream.next(position)
        epoch, row = stream.place(position - 1)
        assert (source.prompts[row], epoch) == (prompt.text, count // 3)


@pytest.mark.parametrize(("source", "count"), [(ListSource(["333", "4444"]), 3), (ListSource(["333"], True), 200)])
def test_a_set_in_which_no_prompt_fits_is_refused(
    source: ListSource, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.prompts.stream._MOST_SKIPS_IN_A_ROW", 200)
    with pytest.raises(DataError, match=rf"data\.max_prompt_length: must be larger, none of {count} prompts in a row"):
        stream_of(source, max_prompt_length=2).next(0)


def test_an_evaluation_takes_the_first_prompts_that_fit() -> None:
    source = ListSource(["1", "333", "22", "4", "5"])
    stream = stream_of(source, shuffle=False, max_prompt_length=2)
    assert [prompt.text for prompt in stream.take(3)] == ["1", "22", "4"]
    assert [prompt.text for prompt in stream.take(99)] == ["1", "22", "4", "5"]


def test_an_evaluation_of_an_endless_source_takes_as_many_as_wanted() -> None:
    stream = stream_of(ListSource(["1", "333"], endless=True), max_prompt_length=2)
    assert len(stream.take(5)) == 5


def test_the_log_at_start_shows_counts_and_one_example() -> None:
    stream = stream_of(ListSource(["333", "1"]), shuffle=False, max_prompt_length=2)
    assert stream.describe() == {"rows": 2, "example_text": "1", "example_tokens": 1, "skipped_too_long": 1}


def test_a_submitted_prompt_is_rendered_like_any_other() -> None:
    row = {"data_source": "sums", "prompt": "1+1=", "ground_truth": "2", "extra_info": ""}
    prompt = stream_of(TEN).render(row)
    assert (prompt.text, prompt.ground_truth, len(prompt.token_ids)) == ("1+1=", "2", 4)
    with pytest.raises(DataError, match=r"at most data\.max_prompt_length = 3 tokens, got 4"):
        stream_of(TEN, max_prompt_length=3).render(row)


def test_a_configuration_opens_both_sides(tmp_path: Path) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    base = [f"model.path={tmp_path}", "data.template=none"]
    files = ["data.train_files=[mixadd3:train]", "data.val_files=[mixadd3:held_out]"]
    first, second = (load_config(None, overrides=[*base, *files, f"run.seed={seed}"]) for seed in (1, 2))
    train = [PromptStream.open(config, files=config.data.train_files).next(0)[0].text for config in (first, second)]
    val = [PromptStream.open(config, files=config.data.val_files, held_out=True).take(5) for config in (first, second)]
    assert train[0] != train[1]
    assert [p.text for p in val[0]] == [p.text for p in val[1]], "evaluation does not depend on the run's seed"
