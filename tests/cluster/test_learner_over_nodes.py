"""A whole run whose learner lies over two nodes of a real cluster: one of them is lost, and the run goes on elsewhere."""

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.chaos.verdict import problems
from tests.e2e.conftest import Run, build_base, until
from tests.e2e.test_whole_run import GROUPS, TINY, read, steps_trained

pytestmark = [pytest.mark.cluster, pytest.mark.e2e, pytest.mark.chaos, pytest.mark.timeout(900)]

NODES = 4
"""Of two GPUs in name only: the learner fills two nodes with two ranks each, a rollout has a place on a third, and so one is
whole when a node is lost."""

STEPS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A cluster as this test sees it."""

    environ: Mapping[str, str]
    """With which a launcher finds the cluster."""
    node_of: Callable[[psutil.Process], str]
    """Of a process; empty for one outside the cluster."""
    lose: Callable[[str], None]
    keeps: str = ""
    """A node that must stay: Ray's head."""


@contextlib.contextmanager
def ray() -> Iterator[Site]:
    with importlib.import_module("tests.cluster.ray_cluster").ray_cluster(nodes=NODES) as cluster:

        def node_of(process: psutil.Process) -> str:
            above = {process.pid, *(parent.pid for parent in process.parents())}
            return next((node for node, started in cluster.nodes.items() if started.pid in above), "")

        yield Site(environ=cluster.environ, node_of=node_of, lose=cluster.kill, keeps=next(iter(cluster.nodes)))


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Site]:
    module = importlib.import_module("tests.cluster.slurm_cluster")
    with module.slurm_cluster(folder, nodes=NODES) as cluster:
        flags = [f"--nodes={NODES}", f"--cpus-per-task={module.CPUS}", "--ntasks-per-node=1"]
        job = cluster.hold(*flags, f"--gres=gpu:{module.GPUS}", "--no-kill")

        def node_of(process: psutil.Process) -> str:
            names = (each.environ().get("SLURMD_NODENAME") for each in (process, *process.parents()))
            return next(filter(None, names), "")

        environ = {"SLURM_CONF": cluster.environ["SLURM_CONF"], "SLURM_JOB_ID": job}
        yield Site(environ=environ, node_of=node_of, lose=cluster.lose)
        cluster.ask("scancel", job)


def _nodes_of_the_learner(site: Site) -> list[str]:
    """The nodes of the programs that start the learner's ranks."""
    nodes: list[str] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[1:4] == ["-P", "-m", "services.learner.distributed.node"]:
                nodes.append(site.node_of(process))
    return [node for node in nodes if node]


@pytest.mark.parametrize("engine", [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("ray", "slurm")])
def test_a_node_with_ranks_of_the_learner_is_lost_and_the_run_goes_on_without_a_restart_counted(
    engine: str, tmp_path: Path
) -> None:
    with ray() if engine == "ray" else slurm(tmp_path) as site:
        two = ("launch.learner_nnodes=2", "launch.learner_nproc_per_node=2", "launch.node_timeout_s=10")
        overrides = (f"launch.engine={engine}", f"run.total_steps={STEPS}", "rollout.engine=transformers", *two, *TINY)
        run_dir = tmp_path / "run"
        run = Run(build_base(), run_dir, overrides, environ={**os.environ, **site.environ})
        try:
            until(run, lambda: steps_trained(run) >= 3, within_s=300)
            nodes = _nodes_of_the_learner(site)
            assert len(nodes) == len(set(nodes)) == 2, nodes
            site.lose(next(node for node in nodes if node != site.keeps))
            assert run.wait(timeout_s=400) == 0, run.output()
        finally:
            run.end()
    assert "learner is lost: " in run.output()
    assert "learner ended with" not in run.output(), "no restart is counted"
    assert "sluice learner-node" not in run.output(), "nothing to type"
    steps = [line["step"] for line in read(run_dir, "metrics.jsonl") if line["kind"] == "step"]
    assert steps == list(range(STEPS))
    groups = json.loads((run_dir / "summary.json").read_text())["groups"]
    assert groups["closed"] is True
    assert groups["trained"] == STEPS * GROUPS
    assert problems(run_dir) == []
