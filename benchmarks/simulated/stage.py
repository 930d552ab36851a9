"""Puts a conductor - the real coordinator or the bare relay - between a real Redis and simulated services, as processes.

The conductor gets one core to itself, everything else the others, where there are two. CPU seconds of a process come from
/proc: they tell what a group costs on a machine where other things run too.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulated.model import write_model
from benchmarks.vs_trl.cpu_time import tree_cpu_seconds
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.launch.commands import Command, coordinator_command
from sluice.launch.embedded_redis import start_redis
from sluice.launch.processes import Child, read_ready, start

READY_S = 180.0


@dataclass(kw_only=True)
class Stage:
    """What stands around a conductor, and the conductor."""

    folder: Path
    model: Path
    redis_url: str
    redis: Child
    address: str = ""
    conductor: Child | None = None

    def conductor_cpu_s(self) -> float:
        """User and system seconds of the conductor so far."""
        assert self.conductor is not None
        return tree_cpu_seconds(self.conductor.process.pid)

    def redis_cpu_s(self) -> float:
        """User and system seconds of Redis so far."""
        return tree_cpu_seconds(self.redis.process.pid)

    @property
    def run_dir(self) -> Path:
        """The run directory of the real coordinator."""
        return self.folder / "run"

    @contextlib.asynccontextmanager
    async def coordinator(self, config: Config) -> AsyncIterator[None]:
        """The real one, on a run directory of its own, to which it comes back when it is started again."""
        run_dir = self.run_dir
        await asyncio.to_thread(_write_config, run_dir, config)
        read_fd, write_fd = os.pipe()
        command = coordinator_command(config, run_dir=run_dir, redis_url=self.redis_url, port=0, ready_fd=write_fd)
        async with self._conduct(command, read_fd, write_fd):
            yield

    @contextlib.asynccontextmanager
    async def relay(self, *flags: str) -> AsyncIterator[None]:
        """The bare one."""
        read_fd, write_fd = os.pipe()
        command = [sys.executable, "-m", "benchmarks.simulated.relay", "--redis-url", self.redis_url]
        command += ["--ready-fd", str(write_fd), *flags]
        async with self._conduct(Command(name="relay", argv=command, environ={}), read_fd, write_fd):
            yield

    @contextlib.asynccontextmanager
    async def _conduct(self, command: Command, read_fd: int, write_fd: int) -> AsyncIterator[None]:
        with _cores(conductor=True):
            child = await start(command, log_path=self.folder / "conductor.log", pass_fds=[write_fd])
        os.close(write_fd)
        try:
            self.address = f"127.0.0.1:{await read_ready(read_fd, child, timeout_s=READY_S)}"
            self.conductor = child
            yield
        finally:
            await child.stop(grace_s=5.0)

    @contextlib.asynccontextmanager
    async def fleet(self, rollouts: int, *flags: str, first: int = 0) -> AsyncIterator[None]:
        """A process with `rollouts` simulated rollouts; `flags` as benchmarks.simulated.fleet takes them."""
        command = [sys.executable, "-m", "benchmarks.simulated.fleet", "--coordinator", self.address]
        command += ["--model", str(self.model), "--rollouts", str(rollouts), "--first", str(first), *flags]
        async with self._beside("fleet", command):
            yield

    @contextlib.asynccontextmanager
    async def reward(self) -> AsyncIterator[None]:
        """A real reward service."""
        command = [sys.executable, "-m", "services.reward", "--coordinator", self.address]
        command += ["--port", "0", "--metrics-port", "0"]
        async with self._beside("reward", command):
            yield

    @contextlib.asynccontextmanager
    async def _beside(self, name: str, command: Sequence[str]) -> AsyncIterator[None]:
        child = await start(Command(name=name, argv=command, environ={}), log_path=self.folder / f"{name}.log")
        try:
            yield
        finally:
            await child.stop(grace_s=5.0)


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """A Redis and a model folder in `folder`; this process, which plays the learner, leaves the conductor's core."""
    await asyncio.to_thread(folder.mkdir)
    with _cores(conductor=False):
        redis = await start_redis(folder / "redis", log_path=folder / "redis.log")
        try:
            yield Stage(folder=folder, model=write_model(folder / "model"), redis_url=redis.url, redis=redis.child)
        finally:
            await redis.stop()


def _write_config(run_dir: Path, config: Config) -> None:
    run_dir.mkdir(exist_ok=True)  # a coordinator may come back to its run
    (run_dir / "config.yaml").write_text(dump_config(config))


@contextlib.contextmanager
def _cores(*, conductor: bool) -> Iterator[None]:
    """What is started within runs on the conductor's core, or on all the others; the same core if there is only one."""
    before = os.sched_getaffinity(0)
    every = sorted(range(os.cpu_count() or 1))
    chosen = set(every[:1]) if conductor or len(every) == 1 else set(every[1:])
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
