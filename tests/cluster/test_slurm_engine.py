"""The engine of `--on slurm` keeps an engine's promises, on a real Slurm."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from sluice.launch.commands import Needs
from sluice.launch.engines.port import LOST
from sluice.launch.engines.slurm import SlurmEngine
from sluice.launch.engines.slurm_job import nodes_of
from tests.cluster.slurm_cluster import CPUS, GPUS, SlurmCluster, slurm_cluster
from tests.contract.engine_tasks import SLEEPS, TasksOnNodes, pid_of, shell, start

pytestmark = [pytest.mark.cluster, pytest.mark.needs("slurm"), pytest.mark.timeout(300)]

WHOLE = ("--ntasks-per-node=1", f"--cpus-per-task={CPUS}", f"--gres=gpu:{GPUS}", "--no-kill")


@dataclass(kw_only=True, slots=True)
class SlurmSite:
    """A job with two whole nodes of a cluster of three."""

    cluster: SlurmCluster
    run_dir: Path
    patch: pytest.MonkeyPatch
    job: str = ""
    engine: SlurmEngine = field(default_factory=SlurmEngine)
    home: str = ""
    """Of the batch step: a job does not outlive it."""
    many: int = 12
    nodes: int = 2
    cpus_per_node: int = CPUS
    gpus_per_node: int = GPUS
    node_lost_within_s: float = 20.0
    """node_timeout_s is 5; the machine is slow."""

    @property
    def environ(self) -> Mapping[str, str]:
        return {"SLURM_CONF": self.cluster.environ["SLURM_CONF"], "SLURM_JOB_ID": self.job}

    async def open(self, *, nodes: int = 2) -> None:
        self.job = await asyncio.to_thread(self.cluster.hold, f"--nodes={nodes}", *WHOLE)
        for name, value in self.environ.items():
            self.patch.setenv(name, value)
        self.home = await asyncio.to_thread(self.cluster.home, self.job)
        await self.engine.open(run_dir=self.run_dir, node_timeout_s=5)

    async def close(self) -> None:
        await self.engine.close()
        await asyncio.to_thread(self.cluster.ask, "scancel", self.job)

    async def kill_node(self, node: str) -> None:
        await asyncio.to_thread(self.cluster.lose, node)

    async def mend(self) -> None:
        """Slurm gives a job no node back, so the site gets another job."""
        await self.close()
        await asyncio.to_thread(self.cluster.mend)
        await self.open()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class TestSlurmEngine(TasksOnNodes):
    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    async def site(self, cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SlurmSite]:
        with pytest.MonkeyPatch.context() as patch:
            site = SlurmSite(cluster=cluster, run_dir=tmp_path_factory.mktemp("run"), patch=patch)
            await site.open()
            yield site
            await site.close()

    async def test_places_that_slurm_takes_for_held_after_a_node_is_lost_are_used_again(
        self, site: SlurmSite, tmp_path: Path
    ) -> None:
        whole = Needs(cpus=site.cpus_per_node, gpus=site.gpus_per_node)
        await site.close()
        await site.open(nodes=3)
        try:
            tasks = [await start(site, shell(f"learner-{n}", SLEEPS, needs=whole), tmp_path) for n in range(3)]
            _, dead, left = sorted(tasks, key=lambda task: (task.node != site.home, task.node))
            await site.kill_node(dead.node)
            assert await dead.wait() == LOST
            async with asyncio.timeout(120):
                while len(await nodes_of(site.job)) == 3:  # noqa: ASYNC110
                    await asyncio.sleep(1)
            await asyncio.gather(*(task.stop(grace_s=10) for task in (left, dead)))
            async with asyncio.timeout(60):
                again = await start(
                    site, shell("again", f"echo gpus=$CUDA_VISIBLE_DEVICES; {SLEEPS}", needs=whole), tmp_path
                )
            await pid_of(tmp_path / "again.log")
            assert again.node == left.node
            assert again.log_tail().startswith("gpus=0,1")
            await again.stop(grace_s=10)
        finally:
            await site.mend()

    async def test_a_step_that_somebody_cancels_has_a_signal_and_no_lost_node(
        self, site: SlurmSite, tmp_path: Path
    ) -> None:
        task = await start(site, shell("reward-77", SLEEPS), tmp_path)
        steps = site.cluster.ask(
            "squeue", "--noheader", "--steps", "--jobs", site.job, "--format", "%i %j"
        ).splitlines()
        step = next(line.split()[0] for line in steps if line.endswith(task.name))
        with contextlib.suppress(AssertionError):  # Slurm 22.05 signals the step and says that there is none
            site.cluster.ask("scancel", "--signal=TERM", step)
        assert await task.wait() == -15
        assert task.lost == ""

    async def test_the_output_of_a_node_that_does_not_see_the_run_directory_arrives_too(
        self, site: SlurmSite, tmp_path: Path
    ) -> None:
        hidden = tmp_path / "run"
        hidden.mkdir()
        for node in site.cluster.nodes:
            site.cluster.lose(node)
        try:
            await site.close()
            site.cluster.mend(hiding=hidden)
            await site.open()
            looks = shell("reward-0", f"ls {hidden}; echo 'reward: no such folder'; exit 2")
            task = await start(site, looks, hidden)
            assert await task.wait() == 2
            assert task.log_tail().splitlines()[0] == "reward: no such folder"
            assert (hidden / "reward-0.log").stat().st_mode & 0o077 == 0
        finally:
            for node in site.cluster.nodes:
                site.cluster.lose(node)
            await site.mend()

    async def test_the_engine_knows_where_slurm_reaches_its_node(self, site: SlurmSite) -> None:
        site.patch.setenv("SLURMD_NODENAME", site.home)
        again = SlurmEngine()
        await again.open(run_dir=site.run_dir, node_timeout_s=5)
        site.patch.delenv("SLURMD_NODENAME")
        assert (site.engine.address, again.address) == ("", "127.0.0.1")
