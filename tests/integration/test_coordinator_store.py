"""The durable transitions against a real Redis: atomic, fenced, without effect when repeated."""

from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis

from services.coordinator.store import Store
from sluice.errors import ConfigError, Fenced, LaunchError
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis

pytestmark = pytest.mark.integration


@pytest.fixture
async def store(redis_server: EmbeddedRedis) -> AsyncIterator[Store]:
    made = Store(url=redis_server.url, run_id="run")
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def accept(store: Store, *names: str) -> None:
    for number, name in enumerate(names):
        await store.admit(name, info={"admission": number}, cursor=str(number + 1), admissions=number + 1)
        await store.accept(name, info={"admission": number}, payload=name.encode(), generated=8, lost=2)


async def test_a_group_goes_from_open_to_trained_and_every_term_is_counted(store: Store) -> None:
    await accept(store, "a", "b")
    assert await store.payload("a") == b"a"
    record = {"ids": ["a", "b"], "digest": "d"}
    assert await store.assign(0, record=record, group_ids=["a", "b"]) == record
    assert await store.payload("a") is None
    await store.commit(0, record={"digest": "w"}, tokens=16, rows={"a": {"admission": 0}, "b": {"admission": 1}})
    counters = await store.counters()
    assert counters["admitted"] == counters["trained"] == 2
    assert counters["open"] == counters["queued"] == counters["assigned"] == 0
    assert (counters["generated_tokens"], counters["lost_tokens"], counters["trained_tokens"]) == (16, 4, 16)
    assert await store.live() == {}
    assert [row["admission"] for row in (await store.rows(10))[1]] == [0, 1]


async def test_repeated_transitions_change_nothing(store: Store) -> None:
    await accept(store, "a")
    await store.admit("a", info={"admission": 0}, cursor="9", admissions=9)
    assert not await store.accept("a", info={"admission": 0}, payload=b"other", generated=8, lost=0)
    assert await store.payload("a") == b"a"
    first = {"ids": ["a"], "digest": "first"}
    await store.assign(0, record=first, group_ids=["a"])
    assert await store.assign(0, record={"ids": ["x"], "digest": "second"}, group_ids=["x"]) == first
    row = {"a": {"admission": 0}}
    await store.commit(0, record={"digest": "w1"}, tokens=8, rows=row)
    assert await store.commit(0, record={"digest": "w2"}, tokens=8, rows=row) == {"digest": "w1"}
    counters = await store.counters()
    assert (counters["admitted"], counters["trained"], counters["trained_tokens"]) == (1, 1, 8)


async def test_an_accepted_group_can_end_as_stale_and_its_payload_goes(store: Store) -> None:
    await accept(store, "a")
    assert await store.end("a", was="queued", term="stale", row={"admission": 0})
    assert not await store.end("a", was="queued", term="stale", row={"admission": 0})
    assert await store.payload("a") is None
    assert (await store.counters())["stale"] == 1


async def test_a_second_coordinator_shuts_the_first_one_out(store: Store, redis_server: EmbeddedRedis) -> None:
    second = Store(url=redis_server.url, run_id="run")
    await second.open()
    with pytest.raises(Fenced):
        await store.admit("a", info={}, cursor="1", admissions=1)
    await second.admit("a", info={}, cursor="1", admissions=1)
    await second.close()


async def test_everything_accepted_is_there_again_after_redis_was_killed(tmp_path, store: Store, redis_server) -> None:
    await accept(store, "a", "b")
    redis_server.child.process.kill()
    await redis_server.child.process.wait()
    revived = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log", socket_dir=redis_server.socket_dir)
    redis_server.child = revived.child
    assert {name: state for name, (state, _) in (await store.live()).items()} == {"a": "queued", "b": "queued"}
    assert await store.payload("b") == b"b"


async def test_a_redis_that_may_evict_is_refused_with_the_fix(redis_server: EmbeddedRedis) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    await client.config_set("maxmemory", "100mb")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    await client.aclose()
    with pytest.raises(ConfigError, match="noeviction"):
        await Store(url=redis_server.url, run_id="run").open()


async def test_a_missing_redis_is_named() -> None:
    with pytest.raises(LaunchError, match=r"network\.redis_url"):
        await Store(url="redis://127.0.0.1:1/0", run_id="run", patience=1).open()
