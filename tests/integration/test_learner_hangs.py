"""Real learner processes that hang: the step's limit ends them by name, and one that was replaced trains nothing more."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sluice.clock import SystemClock
from sluice.config.schema import LaunchConfig
from sluice.errors import Busy
from sluice.launch.commands import Command
from sluice.launch.frozen import FrozenWatch
from sluice.launch.keeper import Keeper
from sluice.testing import assert_eventually
from sluice.testing.fakes import FakeCoordinator, serving
from sluice.v1 import coordinator_pb2 as pb
from tests.forked import ForkedProcess
from tests.integration import hanging_learner, short_collectives
from tests.integration.service_process import ENVIRON, flags, learner
from tests.integration.tiny_run import tiny_coordinator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

LIMIT_S = 2.0


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[tuple[FakeCoordinator, str]]:
    settings = {"max_tokens_per_micro_batch": 64, "step_timeout_s": LIMIT_S}
    fake = tiny_coordinator(tmp_path, ready=2, end=2, learner=settings)
    async with serving(fake) as address:
        yield fake, address


async def _end(process: ForkedProcess) -> tuple[int, str]:
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def test_a_rank_that_hangs_while_its_heartbeats_go_on_ends_all_ranks_by_name_with_their_stacks(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    hang = {"HANG_AT": "1", "HANG_RANK": "1", "HANG_HOW": "sleep"}
    async with learner(address, main=hanging_learner.main, ranks=2, environ=hang, piped=True) as ranks:
        await fake.until(lambda: len(fake.commits) == 1)
        started = time.monotonic()
        _, errors = await _end(ranks)
    assert ranks.codes[1] == 1
    assert ranks.codes[0] != 0
    assert time.monotonic() - started >= LIMIT_S
    assert "step_hung" in errors
    for fact in ("rank=1", "part='training of step 1'", "limit_s=2.0", "setting=learner.step_timeout_s"):
        assert fact in errors
    assert "in _hang\n" in errors
    assert [commit.step for commit in fake.commits] == [0]


async def test_a_leader_whose_follower_is_frozen_between_two_steps_ends_by_name(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    await fake.allow(ready=1, end=10)
    async with learner(address, ranks=2, piped=True) as ranks:
        await fake.until(lambda: len(fake.commits) == 1)
        ranks.send_signal(signal.SIGSTOP, rank=1)
        await fake.allow(ready=10)
        async with asyncio.timeout(60):
            line = b""
            while b"step_hung" not in line:
                line = await ranks.stderr.readline()
                assert line, "the leader has ended"
        await assert_eventually(lambda: ranks.codes[0] is not None, within_s=30, what="the leader has ended")
        ranks.send_signal(signal.SIGKILL, rank=1)
        await _end(ranks)
    assert ranks.codes == [1, -signal.SIGKILL]
    assert "rank=0" in line.decode()
    assert "setting=learner.step_timeout_s" in line.decode()


async def test_a_hang_that_holds_pythons_lock_is_ended_too_and_the_first_step_gets_twice_the_time(
    coordinator: tuple[FakeCoordinator, str],
) -> None:
    fake, address = coordinator
    hang = {"HANG_AT": "0", "HANG_RANK": "0", "HANG_HOW": "lock"}
    async with learner(address, main=hanging_learner.main, environ=hang, piped=True) as process:
        await fake.until(lambda: len(fake.registrations) == 1)
        code, errors = await _end(process)
    assert code == 1
    assert "Timeout (0:00:04.5" in errors
    assert "in _hang\n" in errors
    assert fake.commits == []


async def test_a_learner_that_wakes_up_after_another_took_over_ends_and_commits_nothing(
    coordinator: tuple[FakeCoordinator, str], tmp_path: Path
) -> None:
    fake, address = coordinator
    patient = fake.config.learner.model_copy(update={"step_timeout_s": 600.0})
    fake.config = fake.config.model_copy(update={"learner": patient})
    hang = {"HANG_AT": "0", "HANG_RANK": "0", "HANG_HOW": str(tmp_path)}
    async with learner(address, main=hanging_learner.main, environ=hang, piped=True) as zombie:
        await assert_eventually((tmp_path / "hanging").exists, within_s=60)
        zombie.send_signal(signal.SIGSTOP)
        async with learner(address, piped=True) as successor:
            await fake.until(lambda: len(fake.commits) == 2)
            assert (await _end(successor))[0] == 0
        (tmp_path / "go").touch()
        zombie.send_signal(signal.SIGCONT)
        code, errors = await _end(zombie)
    assert code == 1
    assert "fence 1 is not 2" in errors
    assert [(commit.step, commit.fence) for commit in fake.commits] == [(0, 2), (1, 2)]


@pytest.mark.long
async def test_ranks_outlast_a_coordinator_that_is_busy_for_longer_than_a_collective_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, asked_s = FakeCoordinator.Register, list[float]()

    async def busy(self: FakeCoordinator, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        asked_s.append(time.monotonic())
        if asked_s[-1] - asked_s[0] < 1.5 * short_collectives.LIMIT_S:
            raise Busy("register: Redis is repaired")
        return await register(self, request, context)

    monkeypatch.setattr(FakeCoordinator, "Register", busy)
    fake = tiny_coordinator(tmp_path, ready=2, end=2, learner={"max_tokens_per_micro_batch": 64})
    async with (
        serving(fake) as address,
        learner(address, main=short_collectives.main, ranks=2, piped=True) as ranks,
    ):
        _, errors = await _end(ranks)
    assert ranks.codes == [0, 0], errors
    assert len(asked_s) > 2
    assert [commit.step for commit in fake.commits] == [0, 1]


@pytest.mark.long
async def test_a_frozen_rank_is_killed_with_its_torchrun_and_the_learner_registers_again(
    coordinator: tuple[FakeCoordinator, str], tmp_path: Path
) -> None:
    fake, address = coordinator
    await fake.allow(ready=0)
    argv = [sys.executable, "-m", "services.learner.distributed.node", "--nproc-per-node", "2", "--", *flags(address)]
    launch, said = LaunchConfig(frozen_timeout_s=2.0, grace_s=5.0), list[str]()
    keeper = Keeper(launch=launch, log_dir=tmp_path, say=said.append, is_over=_no)
    watch = FrozenWatch(launch=launch, keeper=keeper, clock=SystemClock())
    keeper.keep(Command(name="learner", argv=argv, environ=ENVIRON))
    try:
        await fake.until(lambda: len(fake.registrations) == 1)
        keeper.known.add("learner")
        keeper.supervise("watch", _listen(fake, watch))
        (rank,) = (found for found in _ranks_of(keeper) if found.environ()["RANK"] == "0")
        rank.suspend()
        await fake.until(lambda: len(fake.registrations) == 2)
        assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
        assert len(_ranks_of(keeper)) == 2
        assert not keeper.failed.done()
    finally:
        await keeper.stop(last="", at_once=asyncio.Event())
    assert len(said) == 1
    assert said[0].startswith("learner did not answer for ")
    assert said[0].endswith(" s (launch.frozen_timeout_s) and was killed; restart 1 of 3")


async def _no() -> bool:
    return False


async def _listen(fake: FakeCoordinator, watch: FrozenWatch) -> None:
    """What the launcher does with each status of the coordinator."""
    while True:
        now = time.monotonic()
        watch.services({"learner": now - fake.heard_s}, asked_s=now)
        await asyncio.sleep(0.2)


def _ranks_of(keeper: Keeper) -> list[psutil.Process]:
    child = keeper.child("learner")
    assert child is not None
    children = psutil.Process(child.process.pid).children(recursive=True)
    return [found for found in children if found.cmdline()[1:5] == ["-P", "-u", "-m", "services.learner"]]
