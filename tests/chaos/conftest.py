"""The tiny model and its recipe, how many runs there are, and the table of recovery times at the end."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.trial import ROOT, Trial
from tests.chaos.witness import Recovery
from tests.tiny_model import write_tiny_model

RESULTS = ROOT / "build" / "chaos.json"

EPISODE_RUNS = 3
"""Seeds of runs with environments: their whole rotation (plan.py)."""

RECIPE: dict[str, Any] = {
    "run": {"name": "chaos", "total_steps": 24},
    "model": {"dtype": "float32"},
    "data": {
        "train_files": ["mixadd3:train"],
        "train_batch_size": 4,
        "max_prompt_length": 16,
        "max_response_length": 64,
        "template": "none",
    },
    "rollout": {"n": 4, "engine": "transformers", "max_num_seqs": 32},
    "reward": {"workers": 1, "timeout_s": 3.0, "routes": {"mixadd3": "tests.chaos.grader"}},
    "learner": {"lr": 1e-4, "warmup_steps": 0, "checkpoint_every_steps": 3, "max_tokens_per_micro_batch": 4096}
    | {"step_timeout_s": 10.0},
    "coordinator": {"heartbeat_interval_s": 0.3, "heartbeat_timeout_s": 2.0},
    "weights": {"timeout_s": 5.0},
    "eval": {"every_steps": 0},
    "launch": {"learner_nproc_per_node": 2, "check_reward": False, "max_restarts": 20, "grace_s": 5.0}
    | {"frozen_timeout_s": 10.0},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only where this folder is asked for by name, as `make chaos` does."""
    parser.addoption("--runs", type=int, default=12, help="seeds 0 to N-1 of the chaos suite")
    parser.addoption("--seed", type=int, action="append", help="this seed alone; may be given several times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a seed."""
    if "seed" in metafunc.fixturenames:
        option = metafunc.config.getoption
        metafunc.parametrize("seed", option("--seed", None) or range(option("--runs", 12)))
    if "episode_seed" in metafunc.fixturenames:
        option = metafunc.config.getoption
        metafunc.parametrize("episode_seed", option("--seed", None) or range(min(EPISODE_RUNS, option("--runs", 12))))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def recipe(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of short steps on the tiny model: two learner ranks, one rollout, one reward with one grader."""
    folder = tmp_path_factory.mktemp("chaos")
    tree = RECIPE | {"model": RECIPE["model"] | {"path": str(tiny)}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


@pytest.fixture
def start_trial(recipe: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Trial]]:
    """Makes trials, and keeps what the last one of each test has recovered from for the table."""
    made: list[Trial] = []

    def make(*overrides: str, **named: Any) -> Trial:
        made.append(Trial(recipe, tmp_path / "run", overrides=overrides, **named))
        return made[-1]

    yield make
    noted = request.config.stash.setdefault(_NOTED, [])
    noted += [
        (request.node.name, recovery, _loads_s(trial.run_dir))
        for trial in made
        for recovery in trial.witness.recoveries
    ]


def _loads_s(run_dir: Path) -> list[float]:
    """Seconds that each start of the learner took for model and checkpoint."""
    log = run_dir / "logs" / "learner.log"
    found = _LOAD.findall(log.read_text(errors="replace")) if log.exists() else []
    return [float(checkpoint_s) + float(model_s) for checkpoint_s, model_s in found]


_LOAD = re.compile(r"model_ready .*checkpoint_s=([\d.]+).* model_s=([\d.]+)")
_NOTED = pytest.StashKey[list[tuple[str, Recovery, list[float]]]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the recovery times and writes them to build/chaos.json."""
    noted = config.stash.get(_NOTED, [])
    if not noted:
        return
    terminalreporter.section("recovery: seconds until everybody is READY again, and until the next step is committed")
    for _, recovery, _ in sorted(noted, key=lambda one: one[1].victims):
        terminalreporter.line(
            f"{_seconds(recovery.back_s)} {_seconds(recovery.step_s)}  {' and '.join(recovery.victims)}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    lines = [
        {"test": name, "victims": one.victims, "thawed_s": one.thawed_s - one.struck_s}
        | {"back_s": one.back_s, "step_s": one.step_s}
        | {"loads_s": loads}
        for name, one, loads in noted
    ]
    RESULTS.write_text(json.dumps(lines, indent=1) + "\n")
    terminalreporter.line(f"in {RESULTS}")


def _seconds(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>6}"
