"""Frozen processes of a launcher, for real: stopped with SIGSTOP, found, killed with all they started, started again."""

import asyncio
import signal
import sys
from pathlib import Path

import psutil
import pytest

from sluice.client import AsyncClient
from sluice.clock import SystemClock
from sluice.config.schema import LaunchConfig
from sluice.launch.commands import Command
from sluice.launch.embedded_redis import start_redis
from sluice.launch.frozen import FrozenWatch
from sluice.launch.keeper import Keeper
from sluice.launch.processes import start
from sluice.testing import assert_eventually

pytestmark = pytest.mark.integration

LAUNCH = LaunchConfig(frozen_timeout_s=2.0, grace_s=5.0)

SERVER = """
import asyncio, sys
from sluice.rpc.server import make_server
async def main():
    server = make_server(lambda _: None, services=[])
    await server.start(bind="127.0.0.1", port=int(sys.argv[1]))
    print("up", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def _no() -> bool:
    return False


async def test_a_frozen_server_is_killed_and_started_again_and_a_healthy_one_is_left_alone(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    said: list[str] = []
    keeper = Keeper(launch=LAUNCH, log_dir=tmp_path, say=said.append, is_over=_no)
    command = Command(name="coordinator", argv=[sys.executable, "-c", SERVER, str(unused_tcp_port)], environ={})
    first = await start(command, log_path=tmp_path / "log")
    client = AsyncClient(f"127.0.0.1:{unused_tcp_port}")
    keeper.known.add("coordinator")
    keeper.keep(command, running=first)
    watch = FrozenWatch(launch=LAUNCH, keeper=keeper, clock=SystemClock())
    try:
        await assert_eventually(lambda: "up" in first.log_tail(), within_s=30)
        assert await client.answers()
        keeper.supervise("watch", watch.probe(lambda: keeper.child("coordinator"), client.answers, ready=first))
        await asyncio.sleep(2 * LAUNCH.frozen_timeout_s)
        assert first.alive
        first.process.send_signal(signal.SIGSTOP)
        await assert_eventually(lambda: bool(said), within_s=20)
        assert said[0].startswith("coordinator did not answer for ")
        assert said[0].endswith(" s (launch.frozen_timeout_s) and was killed; restart 1 of 3")
        await assert_eventually(lambda: keeper.child("coordinator") not in (None, first), within_s=10)
        again = keeper.child("coordinator")
        assert again is not None
        await assert_eventually(lambda: "up" in again.log_tail(), within_s=30)
        assert not keeper.failed.done()
    finally:
        await keeper.stop(last="", at_once=asyncio.Event())
        await client.close()


async def test_a_frozen_redis_is_noticed_by_its_missing_pong(tmp_path: Path) -> None:
    redis = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    keeper = Keeper(launch=LAUNCH, log_dir=tmp_path, say=print, is_over=_no)
    watch = FrozenWatch(launch=LAUNCH, keeper=keeper, clock=SystemClock())
    try:
        assert await redis.answers()
        keeper.supervise("watch", watch.probe(lambda: redis.child, redis.answers, ready=redis.child))
        redis.child.process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await redis.child.process.wait() == -signal.SIGKILL
        assert "launch.frozen_timeout_s" in redis.child.killed
    finally:
        await keeper.stop(last="", at_once=asyncio.Event())
        await redis.stop()


async def test_killing_a_child_takes_the_frozen_processes_of_its_session_too(tmp_path: Path) -> None:
    parent = "import subprocess, time; subprocess.Popen(['sleep', '1000']); print('up', flush=True); time.sleep(1000)"
    command = Command(name="rollout-0", argv=[sys.executable, "-c", parent], environ={})
    child = await start(command, log_path=tmp_path / "log")
    await assert_eventually(lambda: "up" in child.log_tail())
    (engine,) = psutil.Process(child.process.pid).children()
    engine.suspend()
    child.process.send_signal(signal.SIGSTOP)
    child.kill("because")
    async with asyncio.timeout(10):
        assert await child.process.wait() == -signal.SIGKILL
    await assert_eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
