"""What `sluice submit --on slurm` hands in, and what Slurm's words about a job mean. No Slurm is needed."""

import sys
from pathlib import Path

import pytest

from sluice.config.load import load_config
from sluice.errors import ConfigError
from sluice.launch.submit.port import JobState, Submission
from sluice.launch.submit.slurm import SlurmSubmitter, never, state_of

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "slurm"

CASES = {
    "plain": [],
    "whole": [
        "slurm.partition=gpu-h100",
        "slurm.account=ml",
        "slurm.qos=high",
        "slurm.time_limit_min=2880",
        "slurm.drain_s=300",
        "slurm.nodes=2",
        "slurm.gpus_per_node=8",
        "slurm.rollout_nodes=4",
        "slurm.rollout_partition=gpu-a40",
        "slurm.rollout_gpus_per_node=4",
        "slurm.requeue=false",
        "slurm.prepare=module load cuda/13 && source /shared/venv/bin/activate",
    ],
}


def submission(*overrides: str, run_dir: str = "/shared/runs/math-1", template: Path | None = None) -> Submission:
    recipe = ROOT / "recipes" / "cpu-demo.yaml"
    config = load_config(recipe, overrides=overrides)
    return Submission(
        name="math-1",
        recipe=Path("/shared/recipes/math.yaml"),
        overrides=overrides,
        config=config,
        run_dir=Path(run_dir),
        template=template,
    )


@pytest.fixture(autouse=True)
def _python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/shared/venv/bin/python")


@pytest.mark.parametrize("case", CASES)
def test_the_batch_script_is_the_one_on_file(case: str) -> None:
    files = SlurmSubmitter().render(submission(*CASES[case]))
    assert files == {"job.sbatch": (GOLDEN / f"{case}.sbatch").read_text()}


def test_names_that_the_shell_or_slurm_would_read_otherwise_are_quoted() -> None:
    (script,) = SlurmSubmitter().render(submission("model.path=it's", run_dir="/shared/50% of $it")).values()
    assert '#SBATCH --output="/shared/50%% of $it/logs/launcher.log"\n' in script
    assert "--run-dir '/shared/50% of $it' --set 'model.path=it'\"'\"'s'\n" in script
    with pytest.raises(ConfigError, match="--run-dir: Slurm takes no quotes"):
        SlurmSubmitter().render(submission(run_dir='/shared/"x'))


def test_a_template_of_ones_own_stands_in_place_of_ours_and_must_have_the_command(tmp_path: Path) -> None:
    template = tmp_path / "own.sbatch"
    template.write_text("#!/bin/bash\n#SBATCH --constraint=ib\n@{directives}\nsrun hostname\nexec @{command}\n")
    (script,) = SlurmSubmitter().render(submission(template=template)).values()
    assert script.startswith("#!/bin/bash\n#SBATCH --constraint=ib\n#SBATCH --job-name=math-1\n")
    assert "exec /shared/venv/bin/python -P -m sluice.cli.main up -c /shared/recipes/math.yaml --on slurm" in script
    template.write_text("#!/bin/bash\n@{order}\n")
    with pytest.raises(ConfigError, match=r"line 2: there is no field @\{order\}(.|\n)*has no field @\{command\}"):
        SlurmSubmitter().render(submission(template=template))


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("JobId=4 JobName=x JobState=PENDING Reason=Resources Dependency=(null) ExitCode=0:0", JobState.WAITING),
        ("JobId=4 JobName=x JobState=RUNNING Reason=None ExitCode=0:0 StdOut=/a b/c Power=", JobState.RUNNING),
        ("JobId=4 JobName=x JobState=COMPLETED Reason=None ExitCode=0:0", JobState.FINISHED),
        ("JobId=4 JobName=x JobState=FAILED Reason=NonZeroExitCode ExitCode=130:0", JobState.STOPPED),
        ("JobId=4 JobName=x JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0", JobState.FAILED),
        ("JobId=4 JobName=x JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15", JobState.STOPPED),
        ("JobId=4 JobName=x JobState=NODE_FAIL Reason=None ExitCode=0:1", JobState.FAILED),
        ("JobState=CANCELLED ExitCode=0:0 StdOut=/dev/null", JobState.STOPPED),
    ],
)
def test_slurms_states_and_the_launchers_exit_code_say_where_a_run_stands(said: str, state: JobState) -> None:
    assert state_of(said) is state


def test_a_job_that_would_never_start_is_told_from_one_that_waits() -> None:
    said = "JobId=4 JobState=PENDING Reason={} ExitCode=0:0"
    for reason in ("PartitionNodeLimit", "PartitionTimeLimit", "QOSMaxWallDurationPerJobLimit", "InvalidAccount"):
        assert never(said.format(reason)) == reason
        assert never(said.format("Priority") + "\n" + said.format(reason)) == reason, "of the second component"
    for reason in ("Resources", "Priority", "None", "BeginTime", "QOSMaxJobsPerUserLimit", "AssocGrpNodeLimit"):
        assert never(said.format(reason)) == ""
    assert never("JobState=RUNNING Reason=PartitionNodeLimit") == ""


def test_settings_of_the_job_must_fit_together() -> None:
    with pytest.raises(ConfigError, match=r"slurm\.rollout_partition: needs slurm\.rollout_nodes above 0, got a40"):
        submission("slurm.rollout_partition=a40")
    with pytest.raises(
        ConfigError, match=r"slurm\.drain_s: must be below slurm\.time_limit_min, which is 60 s, got 60"
    ):
        submission("slurm.time_limit_min=1")
