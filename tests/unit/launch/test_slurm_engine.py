"""Text of Slurm's commands, the choice of a node, srun's line, and what is refused outside a job: no Slurm is needed."""

from pathlib import Path

import pytest

from sluice.errors import ConfigError
from sluice.launch.commands import Command, Needs
from sluice.launch.engines.slurm import SlurmEngine
from sluice.launch.engines.slurm_job import Node, choose, component_of, impossible, share, shares, silent
from sluice.launch.engines.srun import srun_line, step_environ

JOB = (
    "JobId=7 JobState=RUNNING NodeList=n[1-3] JOB_GRES=gpu:h100:6    Nodes=n[1-2] CPU_IDs=0-7,12-15 Mem=512 "
    "GRES=gpu:h100:2(IDX:0-1),gpu:a40:1(IDX:2)   Nodes=n3 CPU_IDs=3 Mem=0 GRES= MinCPUsNode=1"
)


def node(name: str, *, cpus: int = 8, gpus: int = 2, component: int | None = None) -> Node:
    return Node(name=name, component=component, cpus=cpus, gpus=gpus)


def test_a_jobs_shares_of_nodes_are_read_from_scontrol() -> None:
    assert shares(JOB) == [("n[1-2]", 12, 3), ("n3", 1, 0)]


def test_dead_nodes_are_those_with_a_star_or_a_dead_state() -> None:
    states = "n1 allocated\nn2 allocated*\nn3 down*\nn4 mixed\nn4 mixed\nn5 draining\nn6 drained\nn7 fail\n"
    assert silent(states) == {"n2", "n3", "n6", "n7"}


def test_gpus_are_packed_and_tasks_without_are_spread() -> None:
    nodes = [node("n1"), node("n2"), node("n3", gpus=4)]
    taken = {"n2": Needs(cpus=1, gpus=1), "n1": Needs(cpus=4)}
    assert choose(nodes, needs=Needs(gpus=1), role="rollout", taken=taken, out={}) == nodes[1]
    assert choose(nodes, needs=Needs(gpus=3), role="learner", taken=taken, out={}) == nodes[2]
    assert choose(nodes, needs=Needs(cpus=1), role="reward", taken=taken, out={}) == nodes[2]
    assert choose(nodes, needs=Needs(gpus=4), role="rollout", taken=taken, out={"n3": "does not answer Slurm"}) == (
        "no node of the job has 4 GPUs and 1 CPU free: n1 has 4 of 8 CPUs and 2 of 2 GPUs free, "
        "n2 has 7 of 8 CPUs and 1 of 2 GPUs free, n3 does not answer Slurm"
    )


def test_with_gpus_come_cpus_so_that_half_of_a_node_is_left_for_tasks_without() -> None:
    assert share(node("n1", cpus=64, gpus=8), Needs(gpus=2)) == Needs(cpus=8, gpus=2)
    assert share(node("n1", cpus=64, gpus=8), Needs(cpus=12, gpus=2)) == Needs(cpus=12, gpus=2)
    assert share(node("n1", cpus=64, gpus=0), Needs(cpus=3)) == Needs(cpus=3)


def test_in_a_heterogeneous_job_learner_and_rollouts_have_components_of_their_own() -> None:
    assert component_of("JobId=24 HetJobId=23 HetJobOffset=1 JobName=run3") == 1
    assert component_of(JOB) is None
    nodes = [node("big", gpus=8, component=0), node("small", gpus=1, component=1)]
    assert choose(nodes, needs=Needs(gpus=1), role="learner", taken={}, out={}) == nodes[0]
    assert choose(nodes, needs=Needs(gpus=1), role="rollout", taken={}, out={}) == nodes[1]
    assert impossible(nodes, needs=Needs(gpus=8), role="learner") == ""
    assert impossible(nodes, needs=Needs(gpus=2), role="rollout").startswith("needs 2 GPUs and 1 CPU on one node")


def test_srun_gets_no_secret_in_its_arguments_and_no_flag_from_the_environment() -> None:
    command = Command(name="rollout-0", argv=["x"], environ={"TOKEN": "s3cret"}, needs=Needs(cpus=2, gpus=1))
    line = srun_line(command, node("n1"), job="7", overlaps=False)
    assert "s3cret" not in " ".join(line)
    assert {"--jobid=7", "--nodelist=n1", "--cpus-per-task=2", "--gres=gpu:1", "--export=ALL"} <= set(line)
    assert "--overlap" not in line
    assert {"--gres=none", "--het-group=1", "--overlap"} <= set(
        srun_line(Command(name="reward-0", argv=["x"], environ={}), node("n1", component=1), job="7", overlaps=True)
    )
    inherited = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_CONF": "/c", "CUDA_VISIBLE_DEVICES": "0", "PATH": "/bin"}
    assert step_environ(inherited) == {"SLURM_CONF": "/c", "PATH": "/bin"}


async def test_without_slurm_or_a_job_one_message_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="srun, scontrol, sinfo is not there"):
        await SlurmEngine().open(run_dir=tmp_path, node_timeout_s=30)
    for name in ("srun", "scontrol", "sinfo"):
        (tmp_path / name).touch(mode=0o755)
    with pytest.raises(ConfigError, match="sluice submit -c RECIPE --on slurm"):
        await SlurmEngine().open(run_dir=tmp_path, node_timeout_s=30)
