"""The srun of one task: its command line and its environment. Text alone."""

from collections.abc import Mapping

from sluice.launch.commands import Command
from sluice.launch.engines.slurm_job import Node

ROOM_WITHIN_S = 3
"""How long srun looks for room that should be there: Slurm's controller hears of a step's end a moment after the launcher."""

_KEPT = ("SLURM_CONF", "SLURM_JWT")
_QUEUES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_", "PMI_", "PMIX_")
_DEVICES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
)


def srun_line(command: Command, node: Node, *, job: str, overlaps: bool) -> list[str]:
    """What stands before the step's own words.

    `--exact` takes what is asked for and no more, `--gres=none` keeps a task without GPUs from all of the job's; `--mem=0` has
    the steps of a node share the job's memory, which the first step would take whole. `overlaps`: whatever Slurm believes that
    other steps hold. The environment goes with srun's own, so that no value of a variable is in an argument list.
    """
    needs = command.needs
    line = [
        "srun",
        f"--jobid={job}",
        f"--job-name={command.name}",
        f"--nodelist={node.name}",
        "--nodes=1",
        "--ntasks=1",
    ]
    line += [] if node.component is None else [f"--het-group={node.component}"]
    line += [f"--cpus-per-task={max(1, needs.cpus)}", f"--gres=gpu:{needs.gpus}" if needs.gpus else "--gres=none"]
    line += ["--overlap"] if overlaps else []
    return [*line, "--exact", "--mem=0", "--mpi=none", "--export=ALL", f"--immediate={ROOM_WITHIN_S}", "--unbuffered"]


def step_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """What srun gets of the launcher's environment: nothing that srun takes for a flag, and not the launcher's own devices."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name.startswith(_QUEUES) or name in _DEVICES)
    }
