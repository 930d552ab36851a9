"""What a Redis must be like for the store: enough room, nothing evicted, every write kept."""

import asyncio
import contextlib
import random

import pytest
import redis.asyncio as aioredis
from structlog.testing import capture_logs

from services.coordinator.storage.redis_store import Store
from sluice.errors import ConfigError, LaunchError, Overloaded
from sluice.launch.embedded_redis import EmbeddedRedis

pytestmark = pytest.mark.integration


async def test_a_redis_that_may_evict_is_refused_with_the_fix(redis_server: EmbeddedRedis) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    await client.config_set("maxmemory", "100mb")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    await client.aclose()
    with pytest.raises(ConfigError, match="noeviction"):
        await Store(url=redis_server.url, run_id="run").open()


async def test_a_redis_that_may_hold_less_than_the_queue_is_refused_with_both_numbers(
    redis_server: EmbeddedRedis,
) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    await client.config_set("maxmemory", "100mb")
    await client.aclose()
    store = Store(url=redis_server.url, run_id="run")
    with pytest.raises(ConfigError, match="maxmemory must be >= 125000000 bytes, got 104857600"):
        await store.open(most_queued_bytes=100_000_000)
    await store.open(most_queued_bytes=80_000_000)
    await store.close()


@pytest.mark.parametrize(
    ("name", "value", "event"),
    [("appendonly", "no", "redis_without_append_only_file"), ("appendfsync", "everysec", "redis_syncs_late")],
)
async def test_a_redis_that_may_forget_is_used_with_a_warning(
    redis_server: EmbeddedRedis, name: str, value: str, event: str
) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    await client.config_set(name, value)
    await client.aclose()
    store = Store(url=redis_server.url, run_id="run")
    with capture_logs() as logs:
        await store.open()
    await store.close()
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [event]


async def test_a_full_redis_takes_no_group_and_still_assigns_the_batch_that_makes_room(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    payload = random.Random(0).randbytes(2_000_000)
    await store.admit({"a": {"admission": 0}}, cursor="1", admissions=1)
    await store.admit({"b": {"admission": 1}}, cursor="2", admissions=2)
    await store.accept("a", info={"admission": 0}, payload=payload, tokens=6, lost=0)
    await client.config_set("maxmemory", (await client.info("memory"))["used_memory"] - 500_000)
    with pytest.raises(Overloaded, match="raise its maxmemory"):
        await store.accept("b", info={"admission": 1}, payload=payload, tokens=6, lost=0)
    await store.assign(0, record={"ids": ["a"], "digest": "d"}, group_ids=["a"], tokens=6)
    async with asyncio.timeout(20):  # Redis frees memory beside what it answers
        while "queued" not in {state for state, _ in (await store.live()).values()}:
            with contextlib.suppress(Overloaded):
                await store.accept("b", info={"admission": 1}, payload=payload[:1000], tokens=6, lost=0)
    assert {name: state for name, (state, _) in (await store.live()).items()} == {"a": "assigned", "b": "queued"}
    await client.aclose()


async def test_a_missing_redis_is_named() -> None:
    with pytest.raises(LaunchError, match=r"network\.redis_url"):
        await Store(url="redis://127.0.0.1:1/0", run_id="run", patience=1).open()
