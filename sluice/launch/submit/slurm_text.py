"""The batch script of a run: text alone.

The script becomes `sluice up --on slurm`, so that Slurm's signal before the time limit reaches the launcher and Slurm sees the
launcher's own exit code. A script that Slurm starts again goes on with the run in the run directory.
"""

import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from sluice.config.schema import SlurmConfig
from sluice.errors import ConfigError
from sluice.launch.submit.port import Submission
from sluice.launch.submit.template import fill, read_template
from sluice.process.child import module_command

SCRIPT = "job.sbatch"

_NEEDED = ("command",)
_NOT_IN_A_DIRECTIVE = '"\\\n'


def rendered(submission: Submission) -> Mapping[str, str]:
    """The files of the run. Raises ConfigError."""
    fields = fields_of_run(submission)
    if submission.template is not None:
        text = read_template(submission.template, known=fields, needed=_NEEDED)
    else:
        text = files("sluice.launch.submit").joinpath("slurm.sbatch").read_text(encoding="utf-8")
    return {SCRIPT: fill(text, fields)}


def output_of(run_dir: Path) -> Path:
    """Where `sluice up` writes: appended to, so that a job that is started again adds to the lines of its first start."""
    return run_dir / "logs" / "launcher.log"


def fields_of_run(submission: Submission) -> dict[str, str]:
    """Every field of the template with its value for this run. Raises ConfigError."""
    slurm = submission.config.slurm
    overrides = [word for override in submission.overrides for word in ("--set", override)]
    command = [*module_command("sluice.cli.main"), "up", "-c", str(submission.recipe), "--on", "slurm", "--plain"]
    return {
        "name": submission.name,
        "run_dir": shlex.quote(str(submission.run_dir)),
        "directives": "\n".join(f"#SBATCH {line}" for line in _directives(submission, slurm)),
        "prepare": slurm.prepare,
        "command": shlex.join([*command, "--run-dir", str(submission.run_dir), *overrides]),
    }


def _directives(submission: Submission, slurm: SlurmConfig) -> list[str]:
    output = str(output_of(submission.run_dir))
    if any(letter in output for letter in _NOT_IN_A_DIRECTIVE):
        raise ConfigError(
            f"--run-dir: Slurm takes no quotes, backslashes or line ends in a path, got {submission.run_dir}"
        )
    own = {"job-name": submission.name, "output": f'"{output.replace("%", "%%")}"', "open-mode": "append"}
    own |= {"requeue" if slurm.requeue else "no-requeue": "", "signal": f"B:TERM@{slurm.drain_s}"}
    first = own | _component(slurm, slurm.nodes, gpus=slurm.gpus_per_node, partition=slurm.partition)
    lines = _flags(first)
    if slurm.rollout_nodes:
        gpus = slurm.gpus_per_node if slurm.rollout_gpus_per_node is None else slurm.rollout_gpus_per_node
        partition = slurm.rollout_partition or slurm.partition
        lines += ["hetjob", *_flags(_component(slurm, slurm.rollout_nodes, gpus=gpus, partition=partition))]
    return lines


def _component(slurm: SlurmConfig, nodes: int, *, gpus: int, partition: str | None) -> dict[str, str | None]:
    """Whole nodes: Redis, the coordinator and `sluice up` itself are no steps, and share the first node with steps."""
    return {
        "partition": partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": str(slurm.time_limit_min) if slurm.time_limit_min else None,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "exclusive": "",
        "mem": "0",
        "gres": f"gpu:{gpus}" if gpus else None,
        "no-kill": "",
    }


def _flags(values: Mapping[str, str | None]) -> list[str]:
    """`None`: the cluster's default; empty: a flag without a value."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in values.items() if value is not None]
