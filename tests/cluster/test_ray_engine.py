"""The engine of `--on ray` keeps an engine's promises, on two nodes of a real cluster."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from sluice.config.schema import LaunchConfig
from sluice.errors import LaunchError
from sluice.launch.commands import Needs
from sluice.launch.engines.choice import engine_of
from sluice.launch.engines.port import LOST, Engine
from sluice.launch.leaving import until_end
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

    async def test_the_tasks_of_a_node_that_is_drained_leave_in_order_and_find_room_elsewhere(
        self, site: RaySite, tmp_path: Path
    ) -> None:
        whole, said = Needs(cpus=CPUS), list[str]()
        leaves = "trap 'echo handed on; exit 0' TERM; echo pid $$; sleep 1000 & wait"
        tasks = [await start(site, shell(f"rollout-{n}", leaves, needs=whole), tmp_path) for n in range(2)]
        going, staying = sorted(tasks, key=lambda task: task.node == HEAD)
        for task in tasks:
            await pid_of(tmp_path / f"{task.name}.log")
        endings = [asyncio.create_task(until_end(task, grace_s=60, say=said.append)) for task in (going, staying)]
        again = asyncio.create_task(start(site, shell("again", SLEEPS, needs=whole), tmp_path))
        try:
            began_s = time.monotonic()
            await asyncio.to_thread(site.cluster.drain, going.node, left_s=90.0)
            async with asyncio.timeout(30):
                assert await endings[0] == LOST
            print(f"drained, and left after {time.monotonic() - began_s:.1f} s")
            assert [line[: line.rindex(",")] for line in said] == [
                f"{going.name} leaves its node: Ray drains node {going.node}"
            ]
            assert going.lost == said[0].partition(": ")[2]
            assert going.log_tail().endswith("handed on")
            await asyncio.to_thread(site.cluster.ended, going.node)
            print(f"the node has ended after {time.monotonic() - began_s:.1f} s")
            assert not endings[1].done()
            assert not again.done(), "a node that is being drained gets nothing new"
            await staying.stop(grace_s=10)
            assert await endings[1] == 0
            assert (await again).node == HEAD
            await (await again).stop(grace_s=10)
        finally:
            for each in (*endings, again):
                each.cancel()
            await site.mend()

    async def test_a_node_that_lacks_something_gets_nothing_more_and_without_another_one_a_task_is_refused(
        self, site: RaySite, tmp_path: Path
    ) -> None:
        (node,) = set(site.cluster.nodes) - {HEAD}
        try:
            await site.engine.exclude(HEAD, "model.path: /m is no folder")
            both = [await start(site, shell(f"rollout-{n}", SLEEPS), tmp_path) for n in range(2)]
            assert {task.node for task in both} == {node}
            await asyncio.gather(*(task.stop(grace_s=10) for task in both))
            await site.engine.exclude(node, "run.dir: /r is not the run's directory")
            site.engine._seen.clear()  # of nodes that other tests have killed, which might come back
            with pytest.raises(
                LaunchError, match=rf"{HEAD} lacks something \(model.path.*; {node} lacks something \(run"
            ):
                await start(site, shell("rollout-0", SLEEPS), tmp_path)
        finally:
            site.engine._unfit.clear()  # pyright: ignore

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
