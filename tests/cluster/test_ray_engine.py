"""The engine of `--on ray` keeps an engine's promises, on two nodes of a real cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from sluice.launch.engines.ray import RayEngine
from tests.cluster.ray_cluster import CPUS, GPUS, HEAD, RayCluster, ray_cluster
from tests.contract.engine_tasks import TasksOnNodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@dataclass(kw_only=True, slots=True)
class RaySite:
    cluster: RayCluster
    environ: Mapping[str, str]
    engine: RayEngine = field(default_factory=RayEngine)
    many: int = 8
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
    @pytest.fixture(scope="class")
    def cluster(self) -> Iterator[RayCluster]:
        with ray_cluster(nodes=2) as cluster, pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environ.items():
                patch.setenv(name, value)
            yield cluster

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    async def site(self, cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RaySite]:
        site = RaySite(cluster=cluster, environ=cluster.environ)
        await site.engine.open(run_dir=tmp_path_factory.mktemp("run"), node_timeout_s=20)
        yield site
        await site.engine.close()
