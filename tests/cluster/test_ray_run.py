"""Whole runs on a real Ray cluster: handed in, a node killed, stopped; and what a cluster that cannot be used is told."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from sluice.config.load import load_config
from sluice.errors import ConfigError, LaunchError, NotFound
from sluice.launch.submit.port import JobState, Submission
from sluice.launch.submit.ray import RaySubmitter
from sluice.testing import assert_eventually_blocking
from tests.chaos.verdict import problems
from tests.cluster.ray_cluster import HEAD, RayCluster
from tests.e2e.conftest import ROOT, base_model  # noqa: F401 - a fixture

pytestmark = [pytest.mark.cluster, pytest.mark.needs("ray"), pytest.mark.timeout(600)]

RECIPE = ROOT / "recipes" / "cpu-demo.yaml"
STEPS = 40
"""So many that a run on a fast machine is not over before Ray has noticed the loss of a node."""
SHORT = (f"run.total_steps={STEPS}", "eval.prompts=16", "eval.n=2", "eval.every_steps=0", "network.coordinator_port=0")
REPLICAS = ("launch.rollout_replicas=2", "launch.reward_replicas=2", "learner.checkpoint_every_steps=1")
"""With the learner five tasks of one CPU on two nodes of three: a rollout on each node, whatever comes first."""


@pytest.fixture
def handed_in(
    ray_nodes: RayCluster,
    base_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Submission]:
    """A submission for this cluster, from the repository's folder with a template such as verl's recipes have."""
    for name, value in ray_nodes.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    template = tmp_path / "runtime_env.yaml"
    template.write_text(
        "working_dir: ./recipes\nexcludes: ['/.git/']\nenv_vars:\n  TORCH_NCCL_AVOID_RECORD_STREAMS: '1'\n"
    )
    overrides = [f"model.path={base_model}", *SHORT, *REPLICAS]
    return Submission(
        name="short",
        recipe=RECIPE,
        overrides=overrides,
        config=load_config(RECIPE, overrides=overrides),
        run_dir=tmp_path / "run",
        template=template,
    )


def steps_trained(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"kind":"step"') if path.exists() else 0


def until(submission: Submission, job: str, steps: int) -> None:
    def holds() -> bool:
        state = RaySubmitter().state(job)
        assert state in (JobState.WAITING, JobState.RUNNING), "\n".join(RaySubmitter().logs(job, follow=False))
        return steps_trained(submission.run_dir) >= steps

    give_up_s = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < give_up_s, "\n".join(RaySubmitter().logs(job, follow=False))
        time.sleep(0.5)


def services(root: psutil.Process, module: str) -> list[psutil.Process]:
    """The processes below `root` that run a service."""

    def runs(process: psutil.Process) -> bool:
        try:
            return module in process.cmdline()
        except psutil.NoSuchProcess:
            return False

    return [each for each in root.children(recursive=True) if runs(each)]


def test_a_run_that_is_handed_in_survives_the_loss_of_a_node(handed_in: Submission, ray_nodes: RayCluster) -> None:
    submitter = RaySubmitter()
    job = submitter.submit(handed_in)
    until(handed_in, job, 2)
    [dead] = [node for node in ray_nodes.nodes if node != HEAD]
    lost = services(ray_nodes.raylet(dead), "services.rollout")
    assert len(lost) == 1
    ray_nodes.kill(dead)
    assert_eventually_blocking(
        lambda: not any(each.is_running() for each in lost), what="the rollout died with its node"
    )
    assert_eventually_blocking(
        lambda: any("waiting for a place for " in line for line in submitter.logs(job, follow=False)),
        within_s=120,
        what="the node that is left has no room",
    )
    ray_nodes.add(1)
    output = list(submitter.logs(job, follow=True))
    text = "\n".join(output)
    assert_eventually_blocking(lambda: submitter.state(job) is JobState.FINISHED, within_s=30, what=text)
    assert f"is lost: node {dead} is gone; looking for another place" in text
    assert "restart 1 of 3" not in text, "what is lost costs no restart"
    summary = json.loads((handed_in.run_dir / "summary.json").read_text())
    assert summary["groups"]["closed"] is True
    assert summary["steps"] == STEPS
    assert problems(handed_in.run_dir) == []
    assert {f"{name}.log" for name in ("learner", "rollout-0", "rollout-1", "reward-0", "reward-1")} <= set(
        os.listdir(handed_in.run_dir / "logs")
    )


def test_a_run_that_is_stopped_ends_in_order_and_leaves_nothing_behind(
    handed_in: Submission, ray_nodes: RayCluster
) -> None:
    endless = replace(handed_in, overrides=[*handed_in.overrides, "run.total_steps=1000"])
    ray_nodes.wait(nodes=2)
    submitter = RaySubmitter()
    job = submitter.submit(endless)
    until(endless, job, 1)
    nodes = [ray_nodes.raylet(node) for node in ray_nodes.nodes]
    assert any(services(node, "services.rollout") for node in nodes)
    submitter.stop(job)
    assert_eventually_blocking(lambda: submitter.state(job) is JobState.STOPPED, within_s=60, what="the job is stopped")
    text = "\n".join(submitter.logs(job, follow=False))
    assert "interrupted: stopping" in text
    assert "run stopped" in text
    assert "restart" not in text, "Redis and the coordinator go last"
    left = [
        each
        for node in nodes
        for module in ("rollout", "reward", "learner")
        for each in services(node, f"services.{module}")
    ]
    assert left == []
    submitter.stop(job)  # of a job that has ended: nothing to do


def test_a_cluster_that_cannot_be_used_is_named_in_one_line_with_the_fix(
    handed_in: Submission, ray_nodes: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ray_nodes.environ["RAY_ADDRESS"]
    for address, said in {
        f"{HEAD}:9": f"no Ray cluster answers at {HEAD}:9 (RAY_ADDRESS): Connection refused; start one with `ray start",
        f"http://{HEAD}:9": f"RAY_ADDRESS is http://{HEAD}:9, which the engine cannot use: give the head's HOST:PORT",
    }.items():
        assert said in refused(handed_in, address)
    with ray_nodes.claiming(version="2.9.3"):
        assert f"the Ray cluster at {head} is Ray 2.9.3 with Python" in (line := refused(handed_in, head))
        assert "install ray==2.9.3 here" in line
    submitter = RaySubmitter()
    with pytest.raises(NotFound, match="Ray knows no job raysubmit_none"):
        submitter.state("raysubmit_none")
    assert handed_in.template is not None
    handed_in.template.write_text("working_dir: ./no-such-folder\n")
    with pytest.raises(ConfigError, match=r"Ray refuses the runtime environment: .*no-such-folder"):
        submitter.submit(handed_in)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://{HEAD}:9")
    with pytest.raises(LaunchError, match=rf"no Ray cluster answers at {HEAD}:9 \(RAY_API_SERVER_ADDRESS\)"):
        submitter.submit(handed_in)


def refused(submission: Submission, address: str) -> str:
    """What `sluice up` says of a cluster at this address, within seconds."""
    command = [sys.executable, "-m", "sluice.cli.main", "up", "--on", "ray", "--plain", "-c", str(submission.recipe)]
    command += ["--run-dir", str(submission.run_dir)]
    command += [part for override in submission.overrides for part in ("--set", override)]
    environ = {**os.environ, "RAY_ADDRESS": address}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=environ)
    assert ended.returncode in (1, 2), ended.stdout + ended.stderr
    [line] = ended.stderr.splitlines()
    return line
