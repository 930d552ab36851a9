"""Environments that a recipe names, and budgets that hold two turns."""

from pathlib import Path
from typing import Any

import pytest

from services.reward.environments.loading import BUILT_IN
from sluice.config.derived import derived_table
from sluice.config.environments import BUILT_IN_ENVIRONMENTS, check_environments, environment_problem
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
    config = parse_config(recipe(), where="r.yaml")
    assert config.longest_sequence == 8 + 2 * 16
    assert any(how.endswith("data.max_response_length = 8 + 2 x 16") for *_, how in derived_table(config))
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


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ("calculator", None),
        ("external", None),
        ("agent", None),
        ("games.py:Guess", None),
        ("games.py:Inherits", None),
        ("games.py:make", None),
        ("calculato", "must be one of calculator, gymnasium, "),
        ("calculato", "got 'calculato'; did you mean calculator?"),
        ("games.py", "games.py needs a class: `games.py:Environment`"),
        ("game.py:Guess", "game.py is not a file (looked for "),
        ("game.py:Guess", "; did you mean games.py?"),
        ("far/away.py:Guess", "; give its path from the folder in which the run is started"),
        ("games.py:Gues", "games.py has no class 'Gues'; did you mean Guess?"),
        ("games.py:Half", "games.py: class 'Half' has no method `step`; it needs `open` and `step`"),
        ("no_such_package:Guess", "no module no_such_package is found"),
    ],
)
def test_an_environment_is_looked_for_without_being_run(
    environment: str, says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "games.py").write_text(
        "class Guess:\n    def open(self, row): ...\n    async def step(self, message): ...\n"
        "class Inherits(Guess): ...\nclass Half:\n    def open(self, row): ...\ndef make(): ...\nassert False\n"
    )
    monkeypatch.chdir(tmp_path)
    assert (says or "") in (environment_problem(environment) or "")
    assert says or environment_problem(environment) is None


def test_all_missing_environments_are_named_by_key_and_the_built_in_ones_are_the_services() -> None:
    config = parse_config(recipe(environments="a: {environment: a.py:A}, b: {environment: openenv}"), where="r.yaml")
    with pytest.raises(
        ConfigError, match=r"environments.a.environment: a.py is not .*\nenvironments.b.settings.make: must"
    ):
        check_environments(config)
    assert tuple(BUILT_IN) == BUILT_IN_ENVIRONMENTS
