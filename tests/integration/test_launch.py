"""The launcher's parts with real processes: nothing outlives it, nothing is restarted for ever, one launcher a directory."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import redis.asyncio as aioredis
from redis.exceptions import ConnectionError as RedisConnectionError

from sluice.config.schema import LaunchConfig
from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import Command
from sluice.launch.embedded_redis import find_server, new_password, start_redis
from sluice.launch.keeper import Keeper
from sluice.launch.processes import read_ready, start
from sluice.launch.run_lock import lock_run_dir
from sluice.process import exit_codes
from sluice.testing import assert_eventually, assert_eventually_blocking
from tests.power_failure import Disk

pytestmark = pytest.mark.integration


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def command(name: str, code: str) -> Command:
    return Command(name=name, argv=python(code), environ=dict(os.environ))


async def answer(over: bool) -> bool:
    return over


@pytest.fixture
async def make_keeper(tmp_path: Path) -> AsyncIterator[Callable[..., Keeper]]:
    made: list[Keeper] = []

    def make(*, max_restarts: int = 2, over: bool = False, say: Callable[[str], None] = print) -> Keeper:
        launch = LaunchConfig(max_restarts=max_restarts, grace_s=5.0)
        made.append(Keeper(launch=launch, log_dir=tmp_path, say=say, is_over=lambda: answer(over)))
        return made[-1]

    yield make
    for keeper in made:
        await keeper.stop(last="", at_once=asyncio.Event())


async def test_an_embedded_redis_starts_answers_and_leaves_no_socket_and_no_process(tmp_path: Path) -> None:
    redis = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    assert (redis.socket_dir / "redis.sock").is_socket()
    await redis.stop()
    assert not redis.socket_dir.exists()
    assert not psutil.pid_exists(redis.child.process.pid)


async def test_the_folders_of_the_embedded_redis_are_on_disk_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, tmp_path)
    redis = await start_redis(tmp_path / "run" / "redis", log_path=tmp_path / "redis.log")
    disk.close()
    await redis.stop()
    assert "appendonlydir" in disk.left()["run"]["redis"]


async def test_what_an_embedded_redis_writes_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        redis = await start_redis(tmp_path / "redis", log_path=tmp_path / "logs" / "redis.log")
    finally:
        os.umask(before)
    await redis.stop()
    written = [path for top in ("redis", "logs") for path in (tmp_path / top, *(tmp_path / top).rglob("*"))]
    assert any(path.suffix == ".aof" for path in written)
    assert [path for path in written if path.stat().st_mode & 0o077] == []


async def test_the_password_of_an_embedded_redis_is_asked_for_and_is_in_no_file_argument_or_environment(
    tmp_path: Path,
) -> None:
    directory, password = tmp_path / 'a "folder" of \\ Ünï', new_password()
    redis = await start_redis(directory, log_path=tmp_path / "redis.log", password=password)
    try:
        assert await redis.answers()
        async with aioredis.Redis.from_url(redis.url) as stranger:
            with pytest.raises(RedisConnectionError, match="authenticated"):
                await stranger.ping()
        async with aioredis.Redis.from_url(redis.url, password=password) as client:
            await client.set("a", 1)
            assert (await client.config_get("dir"))["dir"] == str(directory)
        process = psutil.Process(redis.child.process.pid)
        assert password not in " ".join(process.cmdline())
        assert password not in process.environ().values()
        assert files_with(password, tmp_path) == []
        assert password not in repr(redis)
    finally:
        await redis.stop()


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_the_socket_of_a_redis_lies_elsewhere_where_the_path_of_the_temporary_folder_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    redis = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")
    try:
        assert deep not in redis.socket_dir.parents
        assert redis.socket_dir.stat().st_mode & 0o777 == 0o700
    finally:
        await redis.stop()
    monkeypatch.setattr("sluice.socket_folder.FOLDERS", ())
    with pytest.raises(LaunchError, match="set TMPDIR to a short folder"):
        await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log")


def test_without_any_redis_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("sluice.launch.embedded_redis.find_spec", lambda _: None)
    with pytest.raises(LaunchError, match="install redis-server"):
        find_server()


def test_a_child_dies_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, pathlib
from sluice.launch.commands import Command
from sluice.launch.processes import start
async def main():
    child = await start(
        Command(name="x", argv=["sleep", "1000"], environ={{}}), log_path=pathlib.Path({str(tmp_path / "log")!r})
    )
    await asyncio.sleep(0.5)
    print(child.process.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
        assert child.name() == "sleep"
        launcher.send_signal(signal.SIGKILL)
    assert_eventually_blocking(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, what="the child is gone"
    )


async def test_a_service_that_dies_too_often_ends_the_run_by_name_with_its_log(
    tmp_path: Path, make_keeper: Callable[..., Keeper]
) -> None:
    said: list[str] = []
    keeper = make_keeper(max_restarts=2, say=said.append)
    keeper.known.add("rollout-0")
    keeper.keep(command("rollout-0", "print('out of memory'); raise SystemExit(7)"))
    with pytest.raises(LaunchError) as caught:
        await asyncio.wait_for(keeper.failed, 20)
    assert said == [f"rollout-0 ended with code 7; restart {n} of 2" for n in (1, 2)]
    for part in (
        "rollout-0 ended with code 7",
        "launch.max_restarts",
        str(tmp_path / "rollout-0.log"),
        "out of memory",
    ):
        assert part in str(caught.value)


async def test_a_service_that_ends_to_be_started_again_uses_up_no_restart(
    make_keeper: Callable[..., Keeper], tmp_path: Path
) -> None:
    said: list[str] = []
    keeper = make_keeper(max_restarts=0, say=said.append)
    keeper.known.add("coordinator")
    log = tmp_path / "ran"
    again = f"sys.exit({exit_codes.AGAIN} if file.tell() < 4 else 7)"
    code = f"import sys; file = open({str(log)!r}, 'a'); file.write('x'); {again}"
    keeper.keep(command("coordinator", code))
    with pytest.raises(LaunchError, match="once more after 0 restarts"):
        async with asyncio.timeout(20):
            await asyncio.shield(keeper.failed)
    assert said == ["coordinator has ended to be started again"] * 3


async def test_a_service_that_is_configured_wrongly_ends_the_run_with_its_own_words(
    make_keeper: Callable[..., Keeper],
) -> None:
    keeper = make_keeper()
    code = "print('a line'); print('reward: reward.routes.a: no grader'); raise SystemExit(2)"
    keeper.keep(command("reward-0", code))
    with pytest.raises(ConfigError, match=r"^reward: reward\.routes\.a: no grader \(reward-0\.log has more\)$"):
        await asyncio.wait_for(keeper.failed, 20)


async def test_a_service_that_dies_before_it_was_registered_or_was_started_wrongly_is_not_restarted(
    make_keeper: Callable[..., Keeper],
) -> None:
    keeper = make_keeper()
    keeper.keep(command("rollout-0", "raise SystemExit(7)"))
    with pytest.raises(LaunchError, match="while starting"):
        await asyncio.wait_for(keeper.failed, 20)
    keeper = make_keeper()
    keeper.known.add("reward-0")
    keeper.keep(command("reward-0", "raise SystemExit(2)"))
    with pytest.raises(ConfigError, match="started wrongly"):
        await asyncio.wait_for(keeper.failed, 20)


async def test_a_replica_that_was_wished_for_and_cannot_start_does_not_end_the_run(
    make_keeper: Callable[..., Keeper],
) -> None:
    said: list[str] = []
    keeper = make_keeper(say=said.append)
    keeper.keep(command("rollout-1", "raise SystemExit(7)"), requested=True)
    await assert_eventually(lambda: bool(said))
    assert "rollout-1 ended with code 7" in said[0]
    assert not keeper.failed.done()


@pytest.mark.parametrize("over", [True, False])
async def test_a_learner_that_leaves_is_started_again_unless_the_run_is_over(
    over: bool, make_keeper: Callable[..., Keeper]
) -> None:
    said: list[str] = []
    keeper = make_keeper(over=over, max_restarts=1, say=said.append)
    keeper.known.add("learner")
    keeper.keep(command("learner", ""))
    await keeper.left("learner", within_s=20)
    assert keeper.failed.done() is not over
    assert bool(said) is not over
    if not over:
        keeper.failed.exception()


async def test_a_service_that_dies_right_after_it_has_registered_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []

    async def registered() -> set[str]:
        return {"learner"}

    launch = LaunchConfig(max_restarts=1, grace_s=5.0)
    keeper = Keeper(
        launch=launch, log_dir=tmp_path, say=said.append, is_over=lambda: answer(False), registered=registered
    )
    keeper.keep(command("learner", "raise SystemExit(1)"))
    with pytest.raises(LaunchError, match="once more after 1 restarts"):
        await keeper.failed
    assert said == ["learner ended with code 1; restart 1 of 1"]
    await keeper.stop(last="", at_once=asyncio.Event())


async def test_a_second_signal_kills_what_does_not_hear(tmp_path: Path) -> None:
    deaf = python("import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)")
    child = await start(Command(name="deaf", argv=deaf, environ={}), log_path=tmp_path / "deaf.log")
    await assert_eventually(lambda: "deaf" in child.log_tail())
    at_once = asyncio.Event()
    stopping = asyncio.create_task(child.stop(grace_s=1000, at_once=at_once))
    await asyncio.sleep(0.1)
    assert child.alive
    at_once.set()
    await asyncio.wait_for(stopping, 5)
    assert not child.alive


async def test_what_a_process_says_when_it_was_started_wrongly_becomes_the_message(tmp_path: Path) -> None:
    for code, error in ((2, ConfigError), (1, LaunchError)):
        read_fd, write_fd = os.pipe()
        says = python(f"print('noise'); print('coordinator: no prompts'); raise SystemExit({code})")
        command = Command(name="coordinator", argv=says, environ={})
        child = await start(command, log_path=tmp_path / f"{code}.log", pass_fds=[write_fd])
        os.close(write_fd)
        with pytest.raises(error, match=r"^coordinator: no prompts$"):
            await read_ready(read_fd, child, timeout_s=10)


async def test_a_run_directory_has_one_launcher_until_its_redis_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.launch.run_lock.PATIENCE_S", 0.2)
    lock = await lock_run_dir(tmp_path)
    with pytest.raises(LaunchError, match="in use"):
        await lock_run_dir(tmp_path)
    redis = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log", lock_fd=lock)
    os.close(lock)
    with pytest.raises(LaunchError, match="in use"):
        await lock_run_dir(tmp_path)
    await redis.stop()
    os.close(await lock_run_dir(tmp_path))
