"""A grader that is not there is refused by the key that names it, before anything starts; nothing of it is run."""

import importlib
from pathlib import Path

import pytest

from services.reward.routing import BUILT_IN
from sluice.cli.main import main
from sluice.config.graders import BUILT_IN_GRADERS, grader_problem

MINE = """\
import os
raise RuntimeError("this file must not be run")
from elsewhere import borrowed as shown
if os.name == "posix":
    async def compute_score(solution_str): return 1.0
made = lambda solution_str: 1.0
class Scorer: ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file, a package and a recipe."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "style.py").write_text(MINE)
    (tmp_path / "rewards" / "all.py").write_text("from elsewhere import *\n")
    (tmp_path / "rewards" / "by_task").mkdir()
    (tmp_path / "rewards" / "by_task" / "sums.py").write_text(MINE)
    (tmp_path / "rewards" / "broken.py").write_text("def compute_score(:\n")
    (tmp_path / "recipe.yaml").write_text("model: {path: m}\ndata: {train_files: [a.jsonl]}\n")
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "grader",
    [
        "math_verify",
        "rewards/style.py:compute_score",
        "rewards/style.py:made",
        "rewards/style.py:shown",
        "rewards/all.py:anything",
        "rewards.style",
        "rewards.style:compute_score",
        "rewards.by_task.sums:compute_score",
        "services.reward.verifiers.gsm8k",
        "json.decoder:JSONDecoder",
    ],
)
def test_a_grader_that_is_there_is_found_without_being_run(grader: str) -> None:
    assert grader_problem(grader) is None


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ("math_verfy", "a dotted module name, `file.py:function` or `module:function`, got 'math_verfy'; did you mean"),
        ("rewards/style.py", "rewards/style.py needs a function: `rewards/style.py:compute_score`"),
        ("rewards/style.py:", "must be one of"),
        ("rewards/stile.py:compute_score", "is not a file"),
        ("rewards/stile.py:compute_score", "; did you mean rewards/style.py?"),
        ("style.py:compute_score", "; did you mean rewards/style.py?"),
        ("reward/style.py:compute_score", "; did you mean rewards/style.py?"),
        ("rewards/style.py:compute_scor", "has no function 'compute_scor'; did you mean compute_score?"),
        ("rewards/style.py:borrowed", "has no function 'borrowed'"),
        ("rewards/broken.py:compute_score", "rewards/broken.py cannot be read as Python: invalid syntax"),
        ("rewards.stile:compute_score", "no module rewards.stile is found"),
        ("rewards.style:compute_scor", "did you mean compute_score?"),
        ("no_such_package.strict", "no module no_such_package.strict is found"),
    ],
)
def test_one_that_is_not_there_is_named_with_the_nearest(grader: str, said: str) -> None:
    assert said in (grader_problem(grader) or "")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [["config", "check"], ["up"], ["up", "--dry-run"], ["check-reward"]], ids=" ".join)
def test_every_command_that_runs_a_recipe_refuses_it_by_key(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    routes = "{sums: [{grader: exact}, {grader: 'rewards/stile.py:compute_score'}], math: math_verfy}"
    assert main([*command, "-c", "recipe.yaml", "--set", f"reward.routes={routes}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("sluice: reward.routes.sums[1]: rewards/stile.py is not a file")
    assert second.startswith("reward.routes.math: must be one of")
    assert second.endswith("did you mean math_verify?")


@pytest.mark.usefixtures("folder")
def test_files_of_reward_services_that_are_started_elsewhere_are_not_looked_for_here() -> None:
    elsewhere = ["--set", "reward.routes={sums: '/srv/graders/sums.py:score'}", "--set", "launch.reward_replicas=0"]
    assert main(["config", "check", "-c", "recipe.yaml", *elsewhere]) == 0


def test_the_built_in_graders_are_the_verifiers_of_the_service() -> None:
    folder = Path(importlib.import_module("services.reward.verifiers").__file__ or "").parent
    assert set(BUILT_IN_GRADERS) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert tuple(BUILT_IN) == BUILT_IN_GRADERS
