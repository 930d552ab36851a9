"""What `sluice submit --on ray` hands in, as text; and templates that are no runtime environment."""

import shlex
from pathlib import Path

import pytest
import yaml

from sluice.config.load import load_config
from sluice.errors import ConfigError
from sluice.launch.submit.port import Submission
from sluice.launch.submit.ray import RaySubmitter

VERLS = """\
working_dir: ./
excludes: ["/.git/"]
env_vars:
  TORCH_NCCL_AVOID_RECORD_STREAMS: "1"
  # VLLM_ATTENTION_BACKEND: "XFORMERS"
"""
RECIPES = Path(__file__).parents[3] / "recipes"


def submission(tmp_path: Path, *, recipe: Path = RECIPES / "cpu-demo.yaml", template: str | None = None) -> Submission:
    path = tmp_path / "runtime_env.yaml"
    if template is not None:
        path.write_text(template)
    return Submission(
        name="sums-1",
        recipe=recipe,
        overrides=["model.path=/models/a b", "run.seed=3"],
        config=load_config(RECIPES / "cpu-demo.yaml", overrides=["model.path=/models/a b", "launch.grace_s=20"]),
        run_dir=Path("/shared/runs/sums-1"),
        template=None if template is None else path,
    )


def test_a_job_is_the_launcher_in_this_folder_with_time_to_end_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    files = RaySubmitter().render(submission(tmp_path))
    assert files["runtime_env.yaml"] == "working_dir: .\nenv_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: '50'\n"
    assert files["entrypoint.sh"] == (
        "sluice up --on ray --plain -c recipes/cpu-demo.yaml --run-dir /shared/runs/sums-1 "
        "--set 'model.path=/models/a b' --set run.seed=3\n"
    )


def test_a_runtime_environment_of_verl_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = RaySubmitter().render(
        submission(tmp_path, template=VERLS + "  RAY_JOB_STOP_WAIT_TIME_S: '9'\npip: [math-verify]\n")
    )
    read = yaml.safe_load(files["runtime_env.yaml"])
    assert read == {
        "working_dir": "./",
        "excludes": ["/.git/"],
        "env_vars": {"TORCH_NCCL_AVOID_RECORD_STREAMS": "1", "RAY_JOB_STOP_WAIT_TIME_S": "9"},
        "pip": ["math-verify"],
    }
    recipe = shlex.split(files["entrypoint.sh"])[6]
    assert recipe == str(RECIPES / "cpu-demo.yaml"), "the working directory does not carry it: its own path"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("[a]", "must be a runtime environment of Ray, a mapping such as `working_dir: .`"),
        ("env_vars: [A]", r"env_vars must be a mapping, got \['A'\]"),
        ("env_vars:\n  NCCL_DEBUG: 1", 'env_vars.NCCL_DEBUG must be a string, got 1; write NCCL_DEBUG: "1"'),
        ("a: [", "cannot be read: while parsing a flow node"),
    ],
)
def test_a_template_that_is_no_runtime_environment_is_refused(tmp_path: Path, template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"--template: {tmp_path}/runtime_env.yaml:? {said}"):
        RaySubmitter().render(submission(tmp_path, template=template))


def test_a_template_that_is_not_there_is_refused(tmp_path: Path) -> None:
    given = submission(tmp_path, template=VERLS)
    assert given.template is not None
    given.template.unlink()
    with pytest.raises(ConfigError, match=r"runtime_env\.yaml cannot be read: .*No such file"):
        RaySubmitter().render(given)
