"""What the model sees of a row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.coordinator.prompts.render import Renderer, load_tokenizer
from services.coordinator.prompts.rows import Message, PromptRow
from sluice.errors import ConfigError
from tests.unit.prompts.prompt_cases import CHARACTERS, character_tokenizer


def row(prompt: Any) -> PromptRow:
    return PromptRow(data_source="sums", prompt=prompt, ground_truth="2", extra_info_json='{"a": 1}')


def ids(text: str) -> list[int]:
    return [CHARACTERS.index(character) + 2 for character in text]


CHAT = (Message(role="system", content="be brief"), Message(role="user", content="1+1="))


def test_without_a_template_the_text_is_tokenised_as_it_is() -> None:
    prompt = Renderer(character_tokenizer(), template="none").render(row("1+1="))
    assert prompt.text == "1+1="
    assert prompt.token_ids.dtype == np.int32
    assert prompt.token_ids.tolist() == ids("1+1=")
    assert (prompt.data_source, prompt.ground_truth, prompt.extra_info_json) == ("sums", "2", '{"a": 1}')
    assert prompt.prompt_id == row("1+1=").prompt_id


def test_without_a_template_a_chat_is_its_contents_on_lines() -> None:
    assert Renderer(character_tokenizer(), template="none").render(row(CHAT)).text == "be brief\n1+1="


def test_without_a_template_the_tokenizer_adds_its_special_tokens() -> None:
    prompt = Renderer(character_tokenizer(bos=True), template="none").render(row("1"))
    assert prompt.token_ids.tolist() == [1, *ids("1")]


def test_the_chat_template_is_applied_with_the_generation_prompt() -> None:
    renderer = Renderer(character_tokenizer(chat=True), template="model")
    assert renderer.render(row(CHAT)).text == "<s>system:be brief<s>user:1+1=<s>bot:"
    assert renderer.render(row("1+1=")).text == "<s>user:1+1=<s>bot:"


def test_the_chat_template_writes_special_tokens_itself() -> None:
    prompt = Renderer(character_tokenizer(chat=True, bos=True), template="model").render(row("1"))
    assert prompt.token_ids.tolist() == [1, *ids("user:1"), 1, *ids("bot:")]


def test_a_template_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.template: must be none for this model"):
        Renderer(character_tokenizer(), template="model")


def test_a_tokenizer_comes_from_the_model_folder(tmp_path: Path) -> None:
    character_tokenizer(chat=True).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer("1+1=")["input_ids"] == ids("1+1=")
    assert tokenizer.chat_template
