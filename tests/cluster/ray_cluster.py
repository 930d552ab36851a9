"""A real Ray cluster on this machine: nodes on loopback addresses of their own, with GPUs in name only."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from sluice.testing import assert_eventually_blocking

HEAD = "127.0.0.2"
"""Ray rewrites 127.0.0.1 to the machine's own address."""
CPUS, GPUS = 6, 2
"""Of each node."""

_PORT, _DASHBOARD_PORT = 26479, 28265
_RAY = Path(sys.executable).with_name("ray")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


@dataclass(kw_only=True, slots=True)
class RayCluster:
    """Nodes by their addresses. One cluster at a time: the ports are fixed."""

    folder: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environ(self) -> Mapping[str, str]:
        """With which Ray's programs and a launcher find the cluster."""
        return {**_QUIET, "RAY_ADDRESS": f"{HEAD}:{_PORT}"}

    @property
    def dashboard(self) -> str:
        """The address that `ray job` takes."""
        return f"http://{HEAD}:{_DASHBOARD_PORT}"

    def add(self, number: int) -> str:
        """Starts node `number`, the head first; returns its address without waiting for it."""
        node = f"127.0.0.{2 + number}"
        first_port = 30000 + 2000 * number
        flags = [f"--node-ip-address={node}", f"--num-cpus={CPUS}", f"--num-gpus={GPUS}", "--block"]
        flags += ["--disable-usage-stats", "--object-store-memory=100000000"]
        flags += [f"--dashboard-agent-listen-port={28366 + number}"]
        flags += [f"--min-worker-port={first_port}", f"--max-worker-port={first_port + 1999}"]
        if number == 0:
            flags += ["--head", f"--port={_PORT}", f"--temp-dir={self.folder}", "--ray-client-server-port=26001"]
            flags += [f"--dashboard-host={HEAD}", f"--dashboard-port={_DASHBOARD_PORT}"]
        else:
            flags += [f"--address={HEAD}:{_PORT}"]
        with (self.folder / f"node-{number}.log").open("ab") as log:
            environ = {**os.environ, **_QUIET}
            command = [str(_RAY), "start", *flags]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)
        self.nodes[node] = process
        return node

    def wait(self, *, nodes: int) -> None:
        """Returns when the head knows that many living nodes."""
        from ray._raylet import GcsClient

        def living() -> int:
            try:
                found = GcsClient(address=f"{HEAD}:{_PORT}").get_all_node_info(timeout=5)
            except Exception:  # noqa: BLE001 - while it starts, of many kinds
                return 0
            return sum(node.state == 0 for node in found.values())

        assert_eventually_blocking(lambda: living() == nodes, within_s=90, what=f"{nodes} nodes of Ray")

    def kill(self, node: str) -> None:
        """SIGKILL to a node's raylet, as if the machine had lost its power; whatever it ran has to end by itself."""
        process = self.nodes.pop(node)
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() == "raylet":
                child.kill()
        process.wait(30)

    def stop(self) -> None:
        """Ends every process of every node."""
        started = [each for node in self.nodes.values() for each in _family(node.pid)]
        for process in started:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        for node in self.nodes.values():
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
