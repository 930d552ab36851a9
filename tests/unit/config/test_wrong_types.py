"""Every key of the schema with every wrong type: a line that names the key, exit code 2, and never a traceback."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from sluice.cli.main import main
from sluice.config.load import load_config
from sluice.config.problems import schema_keys
from sluice.config.yaml_text import parse_yaml
from sluice.errors import ConfigError

BASE = ["model.path=m", "data.train_files=[a.jsonl]"]
VALUES = (
    *("null", "true", "0", "-1", "3", "1.5", "-.5", ".nan", ".inf", "-.inf", "1e400", "text", "''", "'1'", "2020-01-01"),
    *("[]", "[null]", "[true]", "[1]", "[1.5]", "[console]", "[[]]", "[[a]]", "[{}]", "[{a: 1}]", "[{1: 2}]", "[1, 2, 3]"),
    *("{}", "{a: 1}", "{1: 2}", "{a: [1]}", "{a: {b: null}}", "{null: 1}", "{true: []}", "[{2020-01-01: 1}]", "!!set {a}"),
    *("!!binary aGk=", r'"\ud83d"', "['" + "x" * 200 + "']", "1" + "0" * 60, "9" * 5000, "&a [*a]", "&a {a: *a}"),
)  # fmt: skip


def lines_of(key: str, value: str) -> list[str]:
    """The lines of the refusal; empty where the value is accepted."""
    try:
        load_config(None, overrides=[*BASE, f"{key}={value}"])
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize("key", schema_keys())
def test_every_key_takes_or_refuses_every_value_in_lines_that_name_it(key: str) -> None:
    section = key.split(".")[0]
    for value in VALUES:
        lines = lines_of(key, value)
        assert not lines or key in " ".join(lines), (value, lines)
        for line in lines:
            assert re.match(rf"(override( {re.escape(key)})?|configuration): ", line), (value, line)
            assert section in line or "must hold at least the largest possible batch" in line, (value, line)
            assert len(line) < 700, (value, line)
            assert not re.search(r"Traceback|pydantic|<class|Error\b", line), (value, line)


@pytest.mark.parametrize("key", [key for key in schema_keys() if "." not in key])
def test_a_section_takes_no_value_that_is_no_section(key: str) -> None:
    for value in ("true", "3", "1.5", "text", "[]", "[1]", "2020-01-01"):
        rule = "a mapping" if key == "environments" else "a section with keys of its own"
        assert lines_of(key, value) == [f"override: {key}: must be {rule}, got {python(value)}"]


def python(value: str) -> str:
    return {"true": "True", "text": "'text'", "2020-01-01": "'2020-01-01'"}.get(value, value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "run.loggers=[console]",
            "override: run.loggers.0: must be 'tensorboard', 'wandb' or 'mlflow', got 'console'",
        ),
        ("run.loggers=console", "override: run.loggers: must be a list, got 'console'"),
        ("run.loggers=[[wandb]]", "override: run.loggers.0: must be 'tensorboard', 'wandb' or 'mlflow', got ['wandb']"),
        (
            "model.target_modules=q_proj",
            "override: model.target_modules: must be `all-linear` or list of text, got 'q_proj'",
        ),
        ("data.train_files=[1]", "override: data.train_files.0: must be text, got 1"),
        ("learner.betas=[0.9, x]", "override: learner.betas.1: must be a number, got 'x'"),
        ("run.name='\"\\ud83d\"'", "override: run.name: must match ^[A-Za-z0-9._-]+$, got '\"\\\\ud83d\"'"),
    ],
)
def test_a_wrong_item_of_a_list_is_named(
    override: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: m}\ndata: {train_files: [a.jsonl]}\n")
    assert main(["config", "check", "-c", str(recipe), "--set", override]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "value", ["&a [*a]", "&a {a: *a}", "9" * 5000, "[" * 3000, "2020-99-99", "!!int x", "!!python/name:os"]
)
def test_yaml_that_cannot_be_read_is_one_line(value: str) -> None:
    (line,) = lines_of("data.train_files", value)
    assert "data.train_files" in line


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("run.name=.", "run.name: must be a name of its own"),
        ("run.name=..", "run.name: must be a name of its own"),
        (r'run.dir="a\0b"', "run.dir: must have no control characters"),
        (r'run.dir="a\nb"', "run.dir: must be one line"),
        ("run.dir=' '", "run.dir: must not be blank"),
        (r'data.train_files=["a\x1bb.jsonl"]', "data.train_files: must have no control characters"),
        (r'network.redis_url="redis://h\0"', "network.redis_url: must have no control characters"),
        ("network.redis_url=''", "network.redis_url: must begin with redis://"),
        ("network.redis_url=localhost:6379", "network.redis_url: must begin with redis://"),
        ("network.coordinator_port=65536", "network.coordinator_port: must be <= 65535"),
        ("network.gateway_port=65536", "network.gateway_port: must be <= 65535"),
        ("launch.learner_rdzv_endpoint=host:65536", "launch.learner_rdzv_endpoint: must"),
        ("launch.learner_rdzv_endpoint=host:٢", "launch.learner_rdzv_endpoint: must"),
        ("launch.rollout_replicas=10001", "launch.rollout_replicas: must"),
        ("launch.rollout_replicas={min: 1, max: 10001}", "launch.rollout_replicas"),
        ("launch.reward_replicas=10001", "launch.reward_replicas: must be <= 10000"),
        ("reward.workers=5000", "reward.workers: must be <= 4096"),
        ("coordinator.generate_timeout_s=1e10", "coordinator.generate_timeout_s: must be <= 1e+09"),
        ("launch.grace_s=1.7e308", "launch.grace_s: must be <= 1e+09"),
        ("eval.n=4097", "eval.n: must be <= 4096"),
        ("rollout.n=4097", "rollout.n: must be <= 4096"),
        ("rollout.temperature=1e-9", "rollout.temperature: must be >= 0.01"),
        ("eval.temperature=1e-9", "eval.temperature: must be >= 0.01"),
    ],
)
def test_a_value_that_would_only_fail_later_is_refused(override: str, rule: str) -> None:
    lines = lines_of(*override.split("=", 1))
    assert lines
    assert rule in lines[0]


def test_aliases_that_stand_for_ever_more_values_are_refused_at_once() -> None:
    names = "abcdefghijklmnop"
    bomb = "a: &a [x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise(names)
    )
    with pytest.raises(ConfigError, match="must not hold more than"):
        parse_yaml(bomb, where="recipe.yaml")
