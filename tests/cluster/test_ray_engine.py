"""The engine of `--on ray` keeps an engine's promises, on two nodes of a real cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from sluice.config.schema import LaunchConfig
from sluice.launch.engines.choice import engine_of
from sluice.launch.engines.port import LOST, Engine
from tests.cluster.ray_cluster import CPUS, GPUS, HEAD, RayCluster
from tests.contract.engine_tasks import SLEEPS, TasksOnNodes, gone, pid_of, shell, start

pytestmark = [pytest.mark.cluster, pytest.mark.needs("ray"), pytest.mark.timeout(180)]

NODE_TIMEOUT_S = 15


@dataclass(kw_only=True, slots=True)
class RaySite:
    """NodeSite: the launcher is on the head."""

    cluster: RayCluster
    engine: Engine
    environ: Mapping[str, str]
    many: int = 6
    nodes: int = 2
    home: str = HEAD
    cpus_per_node: int = CPUS
    gpus_per_node: int = GPUS
    node_lost_within_s: float = 60.0

    async def kill_node(self, node: str) -> None:
        await asyncio.to_thread(self.cluster.kill, node)

    async def mend(self) -> None:
        await asyncio.to_thread(self.cluster.add, 1)
        await asyncio.to_thread(self.cluster.wait, nodes=2)


class TestRayEngine(TasksOnNodes):
    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    async def site(self, ray_nodes: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RaySite]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ray_nodes.environ.items():
                patch.setenv(name, value)
            engine = engine_of(LaunchConfig(engine="ray"))
            await engine.open(run_dir=tmp_path_factory.mktemp("run"), node_timeout_s=NODE_TIMEOUT_S)
            yield RaySite(cluster=ray_nodes, engine=engine, environ=ray_nodes.environ)
            await engine.close()

    async def test_the_last_words_of_a_task_come_from_a_node_whose_files_the_launcher_does_not_see(
        self, site: RaySite, tmp_path: Path
    ) -> None:
        task = await start(site, shell("reward-0", "echo 'reward: no run directory here'; exit 2"), tmp_path)
        assert await task.wait() == 2
        (tmp_path / "reward-0.log").unlink()
        assert task.log_tail() == task.last_words() == "reward: no run directory here"

    async def test_the_cluster_is_known_by_its_own_address_and_devices(self, site: RaySite) -> None:
        assert site.engine.address == HEAD
        assert await site.engine.gpus() == site.nodes * GPUS

    async def test_a_task_whose_actor_is_frozen_is_lost_when_it_has_to_end_and_leaves_nothing(
        self, site: RaySite, tmp_path: Path
    ) -> None:
        task = await start(site, shell("reward-0", SLEEPS), tmp_path)
        process = psutil.Process(await pid_of(tmp_path / "reward-0.log"))
        process.parent().suspend()
        async with asyncio.timeout(3 * NODE_TIMEOUT_S):
            await task.stop(grace_s=1)
        assert await task.wait() == LOST
        assert task.lost == f"node {task.node} has not ended the process for {NODE_TIMEOUT_S} s (launch.node_timeout_s)"
        await gone(process.pid)
