"""demo-llm says over its recipe which model and prompts it takes; what it starts is replaced here."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from sluice.cli import demo_llm
from sluice.cli.main import main
from sluice.tasks import sums


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, in a folder whose name has what YAML would stumble over."""
    folder = tmp_path / "my cache, [new]: #1"
    monkeypatch.setenv("SLUICE_CACHE", str(folder))
    return folder


@pytest.fixture
def started(monkeypatch):
    """What would have been started: commands, then the configuration of the run. Commands end with `code`."""
    seen = SimpleNamespace(commands=[], config=None, code=0)

    def run(command, **_):
        seen.commands.append(command)
        return SimpleNamespace(returncode=seen.code)

    def run_here(config, args):
        seen.config = config
        return 0

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(demo_llm, "run_here", run_here)
    return seen


def test_the_model_is_made_in_the_cache_and_the_run_takes_it_and_the_prompts(cache, started):
    assert main(["demo-llm"]) == 0
    model = cache / "smollm2-135m-instruct"
    assert [command[1:] for command in started.commands] == [
        ["-P", "-m", "services.learner.gguf_base.build", "--out", str(model)]
    ]
    assert started.config.model.path == str(model)
    assert started.config.run.name == "sums-smollm2"
    (train,), (held_out,) = started.config.data.train_files, started.config.data.val_files
    assert Path(train).read_text() == sums.json_lines("train")
    assert Path(held_out).read_text() == sums.json_lines("held_out")
    assert {Path(train).parent, Path(held_out).parent} == {cache / "sums"}


def test_a_model_of_ones_own_is_taken_as_it_is_and_nothing_is_made(cache, started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo-llm", "--model", "mine"]) == 0
    assert started.commands == []
    assert started.config.model.path == str(tmp_path / "mine")


@pytest.mark.usefixtures("cache")
def test_settings_win_over_the_demos_own(started, tmp_path):
    mine = json.dumps([str(tmp_path / "mine.jsonl")])
    flags = ["--seed", "3", "--steps", "7", "--set", f"data.train_files={mine}", "--set", "learner.lr=1e-6"]
    assert main(["demo-llm", *flags]) == 0
    assert (started.config.run.seed, started.config.run.total_steps, started.config.learner.lr) == (3, 7, 1e-6)
    assert started.config.data.train_files == [str(tmp_path / "mine.jsonl")]


@pytest.mark.usefixtures("cache")
def test_a_model_that_is_set_needs_none_made_either(started):
    assert main(["demo-llm", "--set", "model.path=/models/mine"]) == 0
    assert started.commands == []
    assert started.config.model.path == "/models/mine"


@pytest.mark.usefixtures("cache")
def test_a_model_that_could_not_be_made_ends_the_command_before_the_run(started):
    started.code = 1
    assert main(["demo-llm"]) == 1
    assert started.config is None


@pytest.mark.usefixtures("cache")
def test_a_setting_that_is_wrong_is_found_before_the_model_is_made(started, capsys):
    assert main(["demo-llm", "--set", "rollout.n=1"]) == 2
    assert started.commands == []
    assert "rollout.n: must be >= 2" in capsys.readouterr().err


@pytest.mark.usefixtures("cache")
def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, fault in (("nowhere", "is not a directory"), ("empty", "has no config.json")):
        assert main(["demo-llm", "--model", str(tmp_path / folder)]) == 2
        assert fault in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_in_a_line(cache, capsys):
    cache.write_text("a file, not a folder")
    assert main(["demo-llm"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sluice: ")
    assert "SLUICE_CACHE" in error
    assert error.count("\n") == 1
