"""demo and demo-turns build a base model of their own task; what they start is replaced here."""

import subprocess
from types import SimpleNamespace

import pytest

from sluice.cli import up
from sluice.cli.main import main


@pytest.mark.parametrize(
    ("command", "task", "folder", "environment"),
    [("demo", "mixadd3", "mixadd3-base", ""), ("demo-turns", "products", "products-base", "calculator")],
)
def test_the_base_is_made_in_the_cache_and_the_run_takes_it(tmp_path, monkeypatch, command, task, folder, environment):
    commands, configs = [], []
    monkeypatch.setenv("SLUICE_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", lambda started, **_: commands.append(started) or SimpleNamespace())
    monkeypatch.setattr(up, "run_here", lambda config, args: configs.append(config) or 0)
    assert main([command, "--seed", "3", "--steps", "7"]) == 0
    base = str(tmp_path / folder)
    assert [one[1:] for one in commands] == [
        ["-P", "-m", "services.learner.sft_base.build", "--task", task, "--out", base]
    ]
    (config,) = configs
    assert (config.model.path, config.run.seed, config.run.total_steps) == (base, 3, 7)
    assert (config.data.train_files, config.data.environment) == ([f"{task}:train"], environment)
    assert config.exact_dapo
