"""`sluice watch` beside a run that somebody else keeps up, and the probe of container engines, over real gRPC."""

import asyncio
import io
import json
import sys
from pathlib import Path

import pytest

from sluice.errors import Unavailable
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.launch.following import follow
from sluice.launch.view import make_view
from sluice.rpc import probe
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, coordinator, small_config

pytestmark = pytest.mark.integration


async def test_a_run_is_watched_to_its_end_and_its_account_is_closed(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    run_dir = tmp_path / "run"
    cast = Cast(model)
    async with cast.standing(), coordinator(small_config(model), run_dir, redis_server.url) as run:
        flags = ["watch", "--plain", "--coordinator", run.address, "--run-dir", str(run_dir)]
        watching = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sluice.cli.main", *flags, stdout=asyncio.subprocess.PIPE
        )
        assert watching.stdout is not None
        assert await watching.stdout.readline()  # it looks on before the run ends
        await cast.register(run)
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        for service in (cast.reward, cast.rollout, cast.learner):
            request = pb.HeartbeatRequest(service_id=service.service_id, incarnation=service.incarnation, draining=True)
            await run.stub.Heartbeat(request, timeout=5)
        async with asyncio.timeout(60):
            output, _ = await watching.communicate()
            assert watching.returncode == 0
            assert await run.task == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["groups"]["closed"]) == (3, True)
    assert (run_dir / "curves.png").stat().st_size > 1000
    assert b"step 3/3" in output


async def test_a_coordinator_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr("sluice.launch.following.PATIENCE_S", 0.1)
    with pytest.raises(Unavailable, match="did not answer for 0 s; is the run up there"):
        await follow(f"127.0.0.1:{unused_tcp_port}", make_view(io.StringIO(), plain=True))


async def test_the_probe_tells_a_service_that_is_healthy_from_one_that_is_not_there(
    model: Path,
    tmp_path: Path,
    redis_server: EmbeddedRedis,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with coordinator(small_config(model), tmp_path / "run", redis_server.url) as run:
        monkeypatch.setenv("SLUICE_PORT", run.address.partition(":")[2])
        assert await asyncio.to_thread(probe.main, []) == 0
    assert await asyncio.to_thread(probe.main, []) == 1
    assert run.address in capfd.readouterr().err
