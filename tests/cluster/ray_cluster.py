"""A real Ray cluster on this machine: nodes on loopback addresses of their own, with GPUs in name only."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sluice.testing import assert_eventually_blocking

HEAD = "127.0.0.2"
"""Ray rewrites 127.0.0.1 to the machine's own address."""
CPUS, GPUS = 3, 2
"""Of each node."""

_PORT, _DASHBOARD_PORT = 26479, 28265
_RAY = Path(sys.executable).with_name("ray")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass(kw_only=True, slots=True)
class RayCluster:
    """Nodes by their addresses. One cluster at a time: the ports are fixed."""

    folder: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _starts: int = 0
    _killed: set[bytes] = field(default_factory=set)

    @property
    def environ(self) -> Mapping[str, str]:
        """With which Ray's programs and a launcher find the cluster."""
        return {
            **_QUIET,
            "RAY_ADDRESS": f"{HEAD}:{_PORT}",
            "RAY_API_SERVER_ADDRESS": f"http://{HEAD}:{_DASHBOARD_PORT}",
        }

    def add(self, number: int) -> str:
        """Starts node `number`, the head first; returns its address without waiting for it.

        Each start has ports and a folder of its own: what is left of a killed node may hold the old ones for a while, and
        nodes with one folder would remove each other's working directories.
        """
        node, self._starts = f"127.0.0.{2 + number}", self._starts + 1
        first_port = 30000 + 1000 * self._starts
        flags = [f"--node-ip-address={node}", f"--num-cpus={CPUS}", f"--num-gpus={GPUS}", "--block"]
        flags += [f"--temp-dir={self.folder / str(self._starts)}", "--disable-usage-stats"]
        flags += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={28300 + self._starts}"]
        flags += [f"--min-worker-port={first_port}", f"--max-worker-port={first_port + 999}"]
        if number == 0:
            flags += ["--head", f"--port={_PORT}", "--ray-client-server-port=26001"]
            flags += [f"--dashboard-host={HEAD}", f"--dashboard-port={_DASHBOARD_PORT}"]
        else:
            flags += [f"--address={HEAD}:{_PORT}"]
        with (self.folder / f"start-{self._starts}.log").open("wb") as log:
            environ = {**os.environ, **_QUIET, "PATH": f"{_RAY.parent}:{os.environ['PATH']}"}
            command = [str(_RAY), "start", *flags]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        self.nodes[node] = process
        return node

    def wait(self, *, nodes: int) -> None:
        """Returns when the head knows that many living nodes; a node that was killed is none."""
        assert_eventually_blocking(
            lambda: len(self._living() - self._killed) == nodes, within_s=90, what=f"{nodes} nodes of Ray"
        )

    def _living(self, node: str = "") -> set[bytes]:
        """Ids of the nodes that the head takes for alive: at one address, or all."""
        from ray._raylet import GcsClient

        try:
            found = GcsClient(address=f"{HEAD}:{_PORT}").get_all_node_info(timeout=5)
        except Exception:  # noqa: BLE001 - while it starts, of many kinds
            return set()
        return {info.node_id for info in found.values() if info.state == 0 and node in ("", info.node_manager_address)}

    def raylet(self, node: str) -> psutil.Process:
        """The parent of all that a node runs."""
        children = psutil.Process(self.nodes[node].pid).children(recursive=True)
        return next(child for child in children if child.name() == "raylet")

    def kill(self, node: str) -> None:
        """SIGKILL to a node's raylet, as when a machine loses its power; what the node ran has to end by itself."""
        self._killed |= self._living(node)
        self.raylet(node).kill()
        self.nodes.pop(node).wait(30)

    def drain(self, node: str, *, left_s: float) -> None:
        """Has the head drain a node, as for a cloud's notice; the node ends by itself once nothing runs there."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2 as pb

        found = self._living(node)
        self._killed |= found
        [node_id] = found
        gone_at_ms = int((time.time() + left_s) * 1000)
        head = GcsClient(address=f"{HEAD}:{_PORT}")
        accepted, why = head.drain_node(node_id.hex(), pb.DRAIN_NODE_REASON_PREEMPTION, "in a test", gone_at_ms)
        assert accepted, why

    def ended(self, node: str) -> None:
        """Returns when a node that was drained has left the cluster by itself; `ray start --block` outlives it."""
        assert_eventually_blocking(lambda: not self._living(node), within_s=30, what=f"{node} has ended")
        _end(self.nodes.pop(node))

    @contextmanager
    def claiming(self, *, version: str) -> Iterator[None]:
        """Has the head say that it is of another version of Ray."""
        from ray._raylet import GcsClient

        head, key, namespace = GcsClient(address=f"{HEAD}:{_PORT}"), b"CLUSTER_METADATA", b"cluster"
        own = head.internal_kv_get(key, namespace, timeout=10)
        head.internal_kv_put(key, json.dumps({**json.loads(own), "ray_version": version}).encode(), True, namespace)
        try:
            yield
        finally:
            head.internal_kv_put(key, own, True, namespace)

    def stop(self) -> None:
        """Ends every process of every node."""
        _end(*self.nodes.values())


def _end(*nodes: subprocess.Popen[bytes]) -> None:
    started = [each for node in nodes for each in _family(node.pid)]
    for process in started:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    for node in nodes:
        node.wait(30)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ray_cluster(*, nodes: int) -> Iterator[RayCluster]:
    """Its folder has a short name: sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        cluster = RayCluster(folder=Path(folder))
        try:
            for number in range(nodes):
                cluster.add(number)
                cluster.wait(nodes=number + 1)
            yield cluster
        finally:
            cluster.stop()
