"""Rows that name an environment: what becomes of the name and its arguments, and which rows are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.prompts.questions import question_key
from services.coordinator.prompts.render import Environments, Prompt, Renderer, Unusable
from services.coordinator.prompts.rows import ARGUMENTS_CHARACTERS, parse_row
from services.coordinator.prompts.stream import PromptStream
from services.coordinator.storage.run_files import RunFiles
from sluice.config.schema import Config
from sluice.environments import Message
from sluice.errors import DataError
from tests.unit.prompts.prompt_cases import ListSource, character_tokenizer, raw_row

KNOWN = Environments(names=("calc", "maze"), default="calc")


def rendered(raw: dict[str, Any], environments: Environments = KNOWN) -> Prompt:
    renderer = Renderer(character_tokenizer(chat=True), template="model", environments=environments)
    return renderer.render(parse_row(raw, where="a.jsonl: line 1"))


@pytest.mark.parametrize("arguments", [{"size": 3}, '{"size": 3}', b'{"size": 3}'])
def test_a_prompt_has_its_rows_environment_arguments_and_chat(arguments: object) -> None:
    chat = [{"role": "system", "content": "go"}, {"role": "user", "content": "1+1="}]
    prompt = rendered(raw_row(chat, environment="maze", env_args=arguments))
    assert (prompt.environment, json.loads(prompt.environment_args_json)) == ("maze", {"size": 3})
    assert prompt.messages == (Message(role="system", content="go"), Message(role="user", content="1+1="))


@pytest.mark.parametrize("nothing", [{}, {"environment": None, "env_args": None}, {"environment": "", "env_args": ""}])
def test_a_row_without_an_environment_has_that_of_the_recipe_or_asks_for_single_answers(
    nothing: dict[str, Any],
) -> None:
    acted, single = rendered(raw_row(**nothing)), rendered(raw_row(**nothing), Environments())
    assert (acted.environment, acted.messages) == ("calc", (Message(role="user", content="1+1="),))
    assert (single.environment, single.environment_args_json, single.messages) == ("", "", ())
    assert single.prompt_id == "0e409b5da624194b80126ecbafc49e13", "runs under way know their prompts by these ids"
    assert acted.prompt_id != single.prompt_id
    assert acted.prompt_id == rendered(raw_row(environment="calc")).prompt_id


def test_equal_prompts_with_other_arguments_are_other_prompts_and_other_questions() -> None:
    rows = [parse_row(raw_row(environment="calc", env_args={"n": n}), where="") for n in (1, 2, 2)]
    assert len({row.prompt_id for row in rows}) == len({question_key(row) for row in rows}) == 2


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"environment": 3}, "environment: must be non-empty text, got 3"),
        ({"environment": "a\nb"}, "environment: must be a name of at most 200 characters on one line"),
        ({"environment": "calc", "env_args": [1]}, r"env_args: must be an object, got \[1\]"),
        ({"environment": "calc", "env_args": "{"}, "env_args: must be JSON or empty"),
        ({"environment": "calc", "env_args": {"a": "x" * ARGUMENTS_CHARACTERS}}, "env_args: must have at most 1048576"),
        (
            {"environment": "chess"},
            r"environment: must be one of the recipe's environments \(calc, maze\), got 'chess'",
        ),
    ],
)
def test_a_bad_column_is_refused_by_name_and_place(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=f"a.jsonl: line 1: {says}"):
        rendered(raw_row(**columns))


def test_arguments_without_an_environment_are_refused() -> None:
    with pytest.raises(
        Unusable, match=r"line 1: env_args: needs an environment; name it in the row, or in data.environ"
    ):
        rendered(raw_row(env_args={"n": 1}), Environments(names=("calc",)))


def test_a_file_with_an_unknown_environment_is_refused_before_anything_else_is_read(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(raw_row(f"{n}+1=", environment=name)) + "\n" for n, name in enumerate("ab")))
    config = Config.model_validate(
        {
            "model": {"path": "/nowhere"},
            "data": {"train_files": [str(file)]},
            "environments": {"a": {"environment": "e.py:A"}},
        }
    )
    for held_out in (False, True):
        with pytest.raises(DataError, match=r"line 2: environment: must be one of .* \(a\), got 'b'"):
            PromptStream.open(config, files=[str(file)], held_out=held_out)


async def test_submitted_prompts_name_environments_too(tmp_path: Path) -> None:
    renderer = Renderer(character_tokenizer(), template="none", environments=KNOWN)
    data = PromptStream(ListSource(["9+9="]), renderer=renderer, seed=0, shuffle=False, max_prompt_length=50)
    feed = PromptFeed(data=data, files=RunFiles(tmp_path), max_prompt_tokens=50)
    row = {"data_source": "mine", "prompt": "1+1=", "ground_truth": "2", "extra_info": ""}
    with pytest.raises(DataError, match="environment: must be one of the recipe's environments"):
        await feed.submit([row, row | {"environment": "chess"}])
    await feed.submit([row | {"environment": "maze", "env_args": '{"n": 1}'}, row])
    first, cursor = feed.next("")
    second, _ = feed.next(cursor)
    assert (first.environment, first.environment_args_json) == ("maze", '{"n": 1}')
    assert (second.environment, second.environment_args_json) == ("calc", "")


@pytest.mark.parametrize("half", [{"env_args": {"a": "\ud83d"}}, {"prompt": [{"role": "\ud83d", "content": "1"}]}])
def test_half_of_a_surrogate_pair_in_what_an_environment_is_told_is_refused(half: dict[str, Any]) -> None:
    with pytest.raises(Unusable, match="must be encodable as UTF-8"):
        rendered(raw_row(**half))
