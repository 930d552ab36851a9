"""A run on a real Slurm: handed in, watched, its node lost, ended; and what Slurm would not start."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluice.config.load import load_config
from sluice.errors import ConfigError, NotFound
from sluice.launch.submit.port import JobState, Submission
from sluice.launch.submit.slurm import SlurmSubmitter
from sluice.testing import assert_eventually_blocking
from tests.chaos.verdict import problems
from tests.cluster.slurm_cluster import SlurmCluster, slurm_cluster
from tests.e2e.conftest import ROOT, base_model

__all__ = ["base_model"]

pytestmark = [pytest.mark.cluster, pytest.mark.needs("slurm"), pytest.mark.timeout(600)]

TINY = ("run.total_steps=8", "eval.prompts=16", "eval.n=2", "eval.every_steps=0", "learner.checkpoint_every_steps=2")
FEW = ("network.coordinator_port=0", "launch.node_timeout_s=10")
RECIPE = ROOT / "recipes" / "cpu-demo.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The commands of this process find the cluster too."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SLURM")]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", cluster.environ["SLURM_CONF"])
        yield cluster


def submission(run_dir: Path, *overrides: str, template: Path | None = None) -> Submission:
    config = load_config(RECIPE, overrides=overrides)
    return Submission(
        name="demo", recipe=RECIPE, overrides=overrides, config=config, run_dir=run_dir, template=template
    )


def until(job: str, condition: Callable[[], bool], *, within_s: float, run_dir: Path) -> None:
    """Returns when the condition holds; fails with what the run has printed."""
    log = run_dir / "logs" / "launcher.log"
    try:
        assert_eventually_blocking(condition, within_s=within_s)
    except AssertionError:
        said = log.read_text() if log.exists() else "nothing"
        raise AssertionError(f"job {job} is {SlurmSubmitter().state(job)}, and has said:\n{said}") from None


@contextlib.contextmanager
def blind(node: str, cluster: SlurmCluster, *, hiding: Path) -> Iterator[None]:
    """Shared storage is not mounted on the node."""
    cluster.lose(node)
    cluster.add(node, hiding=hiding)
    try:
        cluster.mend()
        yield
    finally:
        cluster.lose(node)
        cluster.mend()


def test_a_run_that_loses_a_node_goes_on_elsewhere_and_closes_its_ledger(
    cluster: SlurmCluster, base_model: Path, tmp_path: Path
) -> None:
    run_dir, submitter = tmp_path / "run", SlurmSubmitter()
    with blind("n3", cluster, hiding=tmp_path):
        job = submitter.submit(submission(run_dir, f"model.path={base_model}", "slurm.nodes=3", *TINY, *FEW))

        def steps() -> int:
            metrics = run_dir / "metrics.jsonl"
            return metrics.read_text().count('"kind":"step"') if metrics.exists() else 0

        until(job, lambda: steps() >= 2, within_s=240, run_dir=run_dir)
        assert submitter.state(job) is JobState.RUNNING
        cluster.lose(_node_of(cluster, job, "rollout-0"))
        over = (JobState.FINISHED, JobState.FAILED, JobState.STOPPED)
        until(job, lambda: submitter.state(job) in over, within_s=300, run_dir=run_dir)
    said = "\n".join(submitter.logs(job, follow=True))
    assert submitter.state(job) is JobState.FINISHED, said
    assert "rollout-0 is lost: node n" in said
    assert "node n3 is left out from now on, and " in said, "the emptiest node, where the storage is not mounted"
    assert "restart 1 of" not in said, "a lost node costs no restart"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["groups"]["closed"]) == (8, True)
    assert problems(run_dir) == []
    for name in ("rollout-0", "reward-0", "learner"):
        assert (run_dir / "logs" / f"{name}.log").stat().st_size > 0


def test_a_node_that_does_not_see_the_run_directory_is_refused_by_name_at_the_start(
    cluster: SlurmCluster, base_model: Path, tmp_path: Path
) -> None:
    run_dir, submitter = tmp_path / "run", SlurmSubmitter()
    with blind("n2", cluster, hiding=tmp_path):
        job = submitter.submit(submission(run_dir, f"model.path={base_model}", "slurm.nodes=3", *TINY, *FEW))
        until(job, lambda: submitter.state(job) is JobState.FAILED, within_s=120, run_dir=run_dir)
    said = "\n".join(submitter.logs(job, follow=True))
    assert f"run.dir: {run_dir} on " in said
    assert "is not the run's directory; put it on storage that every node mounts" in said


def test_what_slurm_would_never_start_is_refused_in_seconds_and_nothing_is_queued(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    model, submitter = f"model.path={tmp_path}", SlurmSubmitter()
    refused = {
        "slurm.partition=nope": "invalid partition specified: nope",
        "slurm.nodes=9": "PartitionNodeLimit",
        "slurm.gpus_per_node=5": "Requested node configuration is not available",
        "slurm.time_limit_min=1440": "PartitionTimeLimit",
    }
    for override, why in refused.items():
        partition = ["slurm.partition=short"] if "time" in override else []
        began_s = time.monotonic()
        with pytest.raises(ConfigError, match=f"slurm: .*{why}.*change the keys of `slurm`"):
            submitter.submit(submission(tmp_path / "run", model, override, *partition))
        assert time.monotonic() - began_s < 10
    assert cluster.ask("squeue", "--noheader", "--format", "%T") in ("", "COMPLETING")
    with pytest.raises(NotFound, match="does not know job 4711"):
        submitter.state("4711")


def test_a_waiting_job_leaves_the_queue_and_a_running_one_ends_in_order(cluster: SlurmCluster, tmp_path: Path) -> None:
    own = tmp_path / "own.sbatch"
    own.write_text(
        "#!/bin/bash\n@{directives}\ntrap 'echo in order; exit 130' TERM\necho up\nsleep 600 & wait\n# @{command}\n"
    )
    submitter = SlurmSubmitter()
    first, second = (
        submission(tmp_path / name, f"model.path={tmp_path}", "slurm.nodes=3", "slurm.requeue=false", template=own)
        for name in ("first", "second")
    )
    running, waiting = submitter.submit(first), submitter.submit(second)
    until(running, lambda: list(submitter.logs(running, follow=False)) == ["up"], within_s=30, run_dir=first.run_dir)
    assert submitter.state(waiting) is JobState.WAITING
    for job in (waiting, running):
        submitter.stop(job)
        until(job, lambda job=job: submitter.state(job) is JobState.STOPPED, within_s=30, run_dir=first.run_dir)
    assert "in order" in list(submitter.logs(running, follow=True))
    assert "JobState=FAILED" in cluster.ask("scontrol", "show", "job", running), "by its own exit code 130"


def _node_of(cluster: SlurmCluster, job: str, name: str) -> str:
    steps = cluster.ask("squeue", "--noheader", "--steps", "--jobs", job, "--format", "%j %N").splitlines()
    return next(line.split()[1] for line in steps if name.startswith(line.split()[0]))
