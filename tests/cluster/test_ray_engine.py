"""The engine of `--on ray` keeps an engine's promises, on two nodes of a real cluster."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from sluice.config.schema import LaunchConfig
from sluice.launch.engines.choice import engine_of
from sluice.launch.engines.port import Engine
from tests.cluster.ray_cluster import CPUS, GPUS, HEAD, RayCluster
from tests.contract.engine_tasks import TasksOnNodes

pytestmark = [pytest.mark.cluster, pytest.mark.needs("ray"), pytest.mark.timeout(180)]


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
            await engine.open(run_dir=tmp_path_factory.mktemp("run"), node_timeout_s=20)
            yield RaySite(cluster=ray_nodes, engine=engine, environ=ray_nodes.environ)
            await engine.close()
