"""Environments that a recipe names, and budgets that hold two turns."""

from typing import Any

import pytest

from sluice.config.load import parse_config
from sluice.errors import ConfigError

RECIPE = """
model: {{path: some/model}}
data: {{train_files: [a.jsonl], max_prompt_length: 8, max_response_length: {response}, {data}}}
environments: {{{environments}}}
"""


def recipe(data: str = "", environments: str = "calc: {environment: calc.py:Calc}", response: int = 16) -> str:
    return RECIPE.format(data=data, environments=environments, response=response)


def test_a_recipe_with_environments_is_taken_with_either_template() -> None:
    for template in ("model", "none"):
        data = f"environment: calc, max_episode_tokens: 25, template: {template}"
        assert parse_config(recipe(data), where="r.yaml").longest_sequence == 25
    assert parse_config(recipe(), where="r.yaml").longest_sequence == 8 + 2 * 16
    assert parse_config(recipe("max_episode_tokens: 3", environments=""), where="r.yaml").longest_sequence == 24, (
        "it has no meaning there"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "environment: maze"}, "data.environment: must be one of environments (calc), got 'maze'"),
        ({"data": "environment: calc", "environments": ""}, "must be one of environments (none), got 'calc'"),
        ({"data": "max_episode_tokens: 24"}, "data.max_episode_tokens: must be more than"),
        (
            {"environments": "calc: {environment: agent, settings: {cards: 3}}"},
            "environments.calc.settings: must be scores alone with `agent`, got 'cards'",
        ),
        ({"environments": "calc: {environment: agent, settings: {scores: 1}}"}, "scores must be true or false, got 1"),
        ({"environments": "calc: {environment: agent, network: true}"}, "environments.calc.network: must be false for"),
        ({"response": 1}, "data.max_response_length: must be >= 2 with environments"),
        (
            {"environments": f"{'x' * 201}: {{environment: a.py:A}}"},
            "environments: a name must have 1 to 200 characters",
        ),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(recipe(**changes), where="r.yaml")
    assert says in str(caught.value)
