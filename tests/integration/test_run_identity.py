"""Two run directories of one name on one Redis, copies and moved directories, runs of versions without an identity."""

import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.coordinator.storage.identity import IDENTITY_FILE, identify
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import ConfigError, LaunchError
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.run_scene import Scene

pytestmark = pytest.mark.integration

KEY_KINDS = (
    "fence",
    "state",
    "info",
    "groups",
    "entry",
    "batch",
    "counter",
    "rows",
    "meta",
    "commit",
    "writes",
    "round",
)


@contextlib.asynccontextmanager
async def scene(model: Path, run_dir: Path, server: EmbeddedRedis) -> AsyncIterator[Scene]:
    run_dir.parent.mkdir(exist_ok=True)
    made = Scene(model=model, run_dir=run_dir, redis_url=server.url)
    async with made.standing():
        yield made


async def train(run: Scene, steps: range) -> None:
    """Serves the run for these steps, from the first coordinator's start to its end."""
    async with run.serve() as served:
        await run.register(served)
        assert (await served.status()).step == steps.start
        await run.learner.train(served, steps)


async def as_an_older_version_left_it(run: Scene) -> None:
    """The keys are called after the directory, and neither file nor owner says whose they are."""
    path = run.run_dir / IDENTITY_FILE
    keys = json.loads(path.read_text())["keys"]
    for kind in KEY_KINDS:
        if await run.redis.exists(f"sluice:{{{keys}}}:{kind}"):
            await run.redis.rename(f"sluice:{{{keys}}}:{kind}", f"sluice:{{{run.run_dir.name}}}:{kind}")
    await run.redis.delete(f"sluice:{{{keys}}}:owner")
    path.unlink()


async def test_two_run_directories_of_one_name_on_one_redis_are_two_runs(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    async with (
        scene(model, tmp_path / "a" / "run", redis_server) as first,
        scene(model, tmp_path / "b" / "run", redis_server) as second,
        first.serve() as one,
    ):
        await first.register(one)
        await first.learner.train(one, range(2))
        async with second.serve() as other:
            await second.register(other)
            assert (await other.status()).step == 0, "the second run knows nothing of the first"
            await second.finish(other, range(5))
        await first.finish(one, range(2, 5))


async def test_a_copy_beside_its_original_goes_on_as_a_run_of_its_own(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    async with (
        scene(model, tmp_path / "run", redis_server) as original,
        scene(model, tmp_path / "copied", redis_server) as copy,
    ):
        await train(original, range(2))
        shutil.copytree(original.run_dir, copy.run_dir)
        copy.learner.trained, copy.learner.version = list(original.learner.trained), original.learner.version
        async with original.serve() as one, copy.serve() as other:
            await original.register(one)
            await copy.register(other)
            assert [(await run.status()).step for run in (one, other)] == [2, 2]
            await copy.finish(other, range(2, 5))
            await original.finish(one, range(2, 5))
        async with copy.serve() as other:
            assert (await other.status()).state == pb.RUN_STATE_FINISHED


async def test_a_directory_that_was_renamed_is_the_same_run(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    async with scene(model, tmp_path / "run", redis_server) as run:
        await train(run, range(2))
        run.run_dir = run.run_dir.rename(tmp_path / "renamed")
        async with run.serve() as served:
            await run.register(served)
            assert (await served.status()).step == 2
            await run.finish(served, range(2, 5))
        assert not run.repairs, "Redis knew everything"


async def test_a_run_of_an_older_version_keeps_its_keys(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    async with scene(model, tmp_path / "run", redis_server) as run:
        await train(run, range(2))
        await as_an_older_version_left_it(run)
        async with run.serve() as served:
            await run.register(served)
            await run.finish(served, range(2, 5))
        assert not run.repairs
        assert json.loads((run.run_dir / IDENTITY_FILE).read_text())["keys"] == "run"


@pytest.mark.parametrize("adopted", [False, True], ids=["nobody-started-it-since", "already-started"])
async def test_an_older_run_of_the_same_name_in_another_directory_is_not_taken(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis, adopted: bool
) -> None:
    async with (
        scene(model, tmp_path / "a" / "run", redis_server) as old,
        scene(model, tmp_path / "b" / "run", redis_server) as new,
        scene(model, tmp_path / "c" / "run", redis_server) as used,
    ):
        await train(used, range(1))
        await as_an_older_version_left_it(used)
        await used.redis.flushall()
        await train(old, range(2))
        await as_an_older_version_left_it(old)
        if adopted:
            await train(old, range(2, 3))
        with pytest.raises(LaunchError, match=r"another run directory called run") as refused:
            async with used.serve():
                pass
        assert "\n" not in str(refused.value)
        async with new.serve() as served:
            await new.register(served)
            assert (await served.status()).step == 0
            await new.finish(served, range(5))
        async with old.serve() as served:
            await old.register(served)
            await old.finish(served, range(3 if adopted else 2, 5))


async def test_a_directory_without_its_identity_is_refused_where_redis_knows_another_owner(
    redis_server: EmbeddedRedis,
) -> None:
    first, second = (Store(url=redis_server.url, run_id="run") for _ in range(2))
    await first.take_over(owner="a")
    with pytest.raises(LaunchError, match=r"of another run directory"):
        await second.take_over(owner="b")
    await first.confirm()
    await second.take_over(owner="b", by_force=True)
    assert await second.owner() == "b"
    await first.close()
    await second.close()


async def test_a_copy_with_a_redis_of_its_own_keeps_its_keys_and_gets_other_names_elsewhere(
    tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    store = Store(url=redis_server.url, run_id="run")
    (tmp_path / "run").mkdir()
    first = await identify(RunFiles(tmp_path / "run"), store, own_redis=True)
    shutil.copytree(tmp_path / "run", tmp_path / "copied")
    copy = await identify(RunFiles(tmp_path / "copied"), store, own_redis=True)
    assert (copy.keys, copy.name) == (first.keys, first.name)
    assert (copy.id, copy.unique) != (first.id, first.unique)
    assert await identify(RunFiles(tmp_path / "copied"), store, own_redis=True) == copy
    assert await identify(RunFiles(tmp_path / "run"), store, own_redis=True) == first
    await store.close()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": 3}', "\ufffd"])
async def test_an_unreadable_identity_is_one_clear_line(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis, text: str
) -> None:
    async with scene(model, tmp_path / "run", redis_server) as run:
        run.run_dir.mkdir()
        (run.run_dir / IDENTITY_FILE).write_text(text)
        with pytest.raises(ConfigError, match=r"run\.json: must be the run's identity") as refused:
            async with run.serve():
                pass
        assert "\n" not in str(refused.value)
