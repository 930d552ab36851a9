"""The environment of docs/environments.md works as it is typed in: the class, its row and its recipe."""

import json
import re

from services.coordinator.prompts.rows import parse_row
from services.reward.environments.loading import Loaded
from sluice.config.load import load_config
from sluice.environments import Message, Reply, Row
from tests.unit.docs.pages import ROOT


def test_the_environment_in_twenty_lines_works_as_it_is_typed_in(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    section = page.partition("## Your own in twenty lines")[2].partition("\n## ")[0]
    for name, language in (("guess.py", "python"), ("rows.jsonl", "json"), ("recipe.yaml", "yaml")):
        block = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
        assert block, language
        (tmp_path / name).write_text(block[1])
    monkeypatch.chdir(tmp_path)
    config = load_config(tmp_path / "recipe.yaml")
    row = parse_row(json.loads((tmp_path / config.data.train_files[0]).read_text()), where="rows.jsonl")
    named = config.environments[config.data.environment]

    environment = Loaded(named.environment, named.settings)
    assert environment.scores
    for seed in range(5):
        episode = environment.new()
        given = Row(
            messages=(Message(role="user", content=str(row.prompt)),),
            data_source=row.data_source,
            ground_truth=row.ground_truth,
            extra_info={},
            arguments={},
            seed=seed,
            max_turns=config.rollout.max_turns,
        )
        assert "from 1 to 20" in episode.open(given)[-1].content
        assert episode.step(Message(role="assistant", content="a text")) == "Write a number."
        low, high = 1, 20
        while isinstance(said := episode.step(Message(role="assistant", content=f"{(low + high) // 2}")), str):
            low, high = ((low + high) // 2 + 1, high) if said == "higher" else (low, (low + high) // 2 - 1)
        assert isinstance(said, Reply)
        assert (said.done, said.score and said.score.score) == (True, 1.0)
