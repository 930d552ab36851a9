"""A run whose disk fills up waits, says which folder needs how much, and ends trained once there is room."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.coordinator.api import disk_patience
from services.coordinator.storage import redis_disk
from services.coordinator.storage.redis_access import access_by_password
from services.coordinator.storage.redis_store import Store
from sluice.clock import SystemClock
from sluice.launch import keeper
from sluice.launch.control_plane import ControlPlane
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis
from sluice.launch.frozen import FrozenWatch
from sluice.launch.keeper import Keeper
from sluice.rpc.credentials import NO_CREDENTIALS
from sluice.run_dir.durable import append_line
from sluice.run_dir.full_disk import DiskWaits
from sluice.run_dir.json_lines import read_json_lines
from sluice.testing import assert_eventually
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, coordinator, small_config
from tests.integration.messages_view import Said
from tests.small_disk import disk_of, fill

pytestmark = [pytest.mark.integration, pytest.mark.needs("tmpfs"), pytest.mark.timeout(120)]


UNDER_WAY_BYTES = 256 << 10
"""Room for what is on its way to Redis when the disk fills up: nobody starts the Redis of these tests again."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 24 MiB."""
    with disk_of(tmp_path / "disk", size_bytes=24 << 20) as folder:
        yield folder


@pytest.fixture
async def redis_on_it(small_disk: Path, tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    server = await start_redis(small_disk / "redis", log_path=tmp_path / "redis.log")
    yield server
    await server.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_patience, "ANSWER_AFTER_S", 0.5)


async def full(run: Coordinator) -> pb.GetStatusResponse:
    """The status in which the disk is named."""
    return await run.until(lambda status: any(wait.who == "disk" for wait in status.waits))


async def has_room(run: Coordinator) -> None:
    await run.until(lambda status: all(wait.who != "disk" for wait in status.waits))


async def test_a_run_on_a_full_disk_waits_by_name_and_ends_trained_when_there_is_room(
    small_disk: Path, redis_on_it: EmbeddedRedis, model: Path
) -> None:
    config, run_dir, cast = small_config(model, run__total_steps=4), small_disk / "run", Cast(model)
    async with cast.standing(), coordinator(config, run_dir, redis_on_it.url) as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))

        batch = await cast.learner.batch(run, 1)
        ballast = fill(small_disk, leave_bytes=UNDER_WAY_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cast.learner.commit(run, 1, batch)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert f"the disk under {small_disk}" in str(refused.value.details())
        status = await full(run)
        assert status.state == pb.RUN_STATE_RUNNING
        why = next(wait.why for wait in status.waits if wait.who == "disk")
        assert all(part in why for part in (str(small_disk), "bytes are needed", "free space there"))
        ballast.unlink()
        await has_room(run)
        await cast.learner.commit(run, 1, batch)

        ballast = fill(small_disk, leave_bytes=UNDER_WAY_BYTES)
        (not_ready,) = await cast.learner.batch(run, 2)
        assert f"the disk under {small_disk}" in not_ready.not_ready.reason
        assert not not_ready.not_ready.ended
        fill(small_disk)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await run.stub.SubmitPrompts(
                pb.SubmitPromptsRequest(prompts=[pb.UserPrompt(data_source="x", prompt="1+1=")]), timeout=5
            )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        ballast.unlink()
        await has_room(run)
        await cast.learner.train(run, range(2, 4))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert status.ledger.closed
        assert not status.waits
    rows = pq.read_table(run_dir / "ledger").to_pylist()
    assert sum(row["term"] == "trained" for row in rows) == 16
    assert len({row["group_id"] for row in rows}) == len(rows) == status.ledger.admitted
    steps = [line["step"] for line in read_json_lines(run_dir / "metrics.jsonl").objects if line["kind"] == "step"]
    assert steps == [0, 1, 2, 3]
    assert redis_on_it.child.alive, "it was asked to write only where there was room"


async def test_a_store_waits_for_a_redis_that_refuses_to_write_and_reads_meanwhile(
    small_disk: Path, redis_on_it: EmbeddedRedis
) -> None:
    disk = DiskWaits(clock=SystemClock(), tell=lambda event, line: None)
    store = Store(url=redis_on_it.url, run_id="run", disk=disk)
    await store.open()
    async with aioredis.Redis.from_url(redis_on_it.url) as client:
        await client.config_set("appendfsync", "everysec")  # then Redis refuses writes instead of ending
        store._disk._folder = None  # as for a server on another machine, whose folder nobody here can look at
        ballast = fill(small_disk)
        await _until_refused(client)
    admitting = asyncio.create_task(store.admit({"a": {"admission": 0}}, cursor="1", admissions=1))
    await assert_eventually(lambda: bool(disk.now()), what="the store waits")
    (wait,) = disk.now()
    assert str(small_disk / "redis") in str(wait)
    assert await store.counters() == {}
    ballast.unlink()
    async with asyncio.timeout(30):
        await admitting
    assert (await store.counters())["admitted"] == 1
    await store.close()


async def _until_refused(client: aioredis.Redis) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await client.set("filler", bytes(5_000))
            except aioredis.ResponseError as error:
                assert "MISCONF" in str(error)  # noqa: PT017 - the loop ends here
                return


def test_a_line_on_a_full_disk_is_whole_or_not_there(small_disk: Path) -> None:
    path = small_disk / "lines"
    append_line(path, {"text": "x" * 3000})
    ballast = fill(small_disk)
    before = path.read_bytes()
    with pytest.raises(OSError, match="is full"):
        append_line(path, {"text": "y" * 3000})
    assert path.read_bytes() == before
    ballast.unlink()
    append_line(path, {"text": "y" * 3000})
    assert [line["text"][0] for line in read_json_lines(path).objects] == ["x", "y"]


def launched_on(small_disk: Path, model: Path) -> tuple[ControlPlane, Said]:
    """A launcher that may restart nothing, as far as it keeps Redis."""
    said, config = Said(), small_config(model, launch__max_restarts=0)
    keeper = Keeper(launch=config.launch, log_dir=small_disk / "run" / "logs", say=said.message, is_over=over)
    plane = ControlPlane(
        config=config,
        run_dir=small_disk / "run",
        lock_fd=None,
        operator=NO_CREDENTIALS,
        keeper=keeper,
        frozen=FrozenWatch(launch=config.launch, keeper=keeper, clock=SystemClock()),
        disk=DiskWaits(
            clock=SystemClock(),
            tell=lambda event, line: said.message(f"{event}: {line}"),
            folder=small_disk / "run",
        ),
        at_once=asyncio.Event(),
        check_only=False,
        evaluate_only=False,
    )
    return plane, said


async def end(plane: ControlPlane) -> None:
    await plane.keeper.stop(last="", at_once=plane.at_once)
    await plane.close()


async def test_the_launcher_starts_redis_again_on_a_full_disk_without_counting_and_another_when_there_is_room(
    small_disk: Path, model: Path
) -> None:
    plane, view = launched_on(small_disk, model)
    ballast = fill(small_disk)
    starting = asyncio.create_task(plane.start_redis())
    await assert_eventually(lambda: any("is full" in line for line in view.said), what="the launcher says why")
    assert str(small_disk) in view.said[0]
    ballast.unlink()
    async with asyncio.timeout(30):
        url = await starting
    async with aioredis.Redis.from_url(url, password=plane.password, retry=Retry(NoBackoff(), 0)) as client:
        await client.set("kept", "x")
        first = plane._redis
        ballast = fill(small_disk)
        with pytest.raises(aioredis.ConnectionError):
            await client.set("lost", bytes(10_000))  # and the server ends
        await assert_eventually(lambda: plane._redis is not first, what="another server", within_s=30)
        assert await client.get("kept") == b"x"  # reads are answered on the full disk
        assert any("redis ended with code 1, and is started again: the disk under" in line for line in view.said)
        ballast.unlink()
        await client.set("written", "x")
    assert not plane.keeper.failed.done()
    await end(plane)


async def test_a_store_waits_also_where_only_writing_shows_that_there_is_no_room(
    small_disk: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane, _ = launched_on(small_disk, model)
    disk = DiskWaits(clock=SystemClock(), tell=lambda event, line: None)
    url = await plane.start_redis()
    store = Store(url=url, run_id="run", patience=4, access=access_by_password(plane.password), disk=disk)
    await store.open()
    monkeypatch.setattr(redis_disk, "check_room", lambda folder, needed_bytes: None)  # as with a quota
    monkeypatch.setattr(keeper, "FULL_DISK_PAUSE_S", 0.1)
    monkeypatch.setattr(keeper, "LONGEST_PAUSE_S", 0.2)
    ballast = fill(small_disk)
    admitting = asyncio.create_task(store.admit({"a": {"admission": 0}}, cursor="1" * 5_000, admissions=1))
    await assert_eventually(lambda: bool(disk.now()), what="the store waits", within_s=30)
    assert str(small_disk / "run" / "redis") in str(disk.now()[0])
    ballast.unlink()
    async with asyncio.timeout(30):
        await admitting
    assert (await store.counters())["admitted"] == 1
    assert not plane.keeper.failed.done()
    await store.close()
    await end(plane)


async def over() -> bool:
    return False
