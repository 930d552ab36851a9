"""The durable transitions against a real Redis: atomic, fenced, without effect when repeated."""

import asyncio
import random
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.exceptions import ResponseError

from services.coordinator.state.board import Board
from services.coordinator.state.ledger import count
from services.coordinator.state.ports import Forgot
from services.coordinator.storage.lua import SCRIPTS
from services.coordinator.storage.redis_store import Store
from sluice.errors import Fenced, Overloaded
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis

pytestmark = pytest.mark.integration


async def accept(store: Store, *names: str) -> None:
    for number, name in enumerate(names):
        await store.admit({name: {"admission": number}}, cursor=str(number + 1), admissions=number + 1)
        await store.accept(name, info={"admission": number}, payload=name.encode(), tokens=6, lost=2)


async def test_a_group_goes_from_open_to_trained_and_every_term_is_counted(store: Store) -> None:
    await accept(store, "a", "b")
    assert await store.payload("a") == b"a"
    record = {"ids": ["a", "b"], "digest": "d"}
    assert (await store.counters())["tokens:queued"] == 12
    assert await store.assign(0, record=record, group_ids=["a", "b"], tokens=12) == record
    assert (await store.counters())["tokens:assigned"] == 12
    assert await store.payload("a") is None
    await store.commit(0, record={"digest": "w"}, tokens=12, rows={"a": {"admission": 0}, "b": {"admission": 1}})
    counters = await store.counters()
    assert counters["admitted"] == counters["trained"] == 2
    assert counters["open"] == counters["queued"] == counters["assigned"] == 0
    assert (counters["generated_tokens"], counters["lost_tokens"], counters["tokens:trained"]) == (16, 4, 12)
    assert counters["tokens:queued"] == counters["tokens:assigned"] == 0
    assert await store.live() == {}
    assert [row["admission"] for row in (await store.rows(10))[1]] == [0, 1]


async def test_records_before_the_oldest_checkpoint_are_forgotten_and_the_others_stay(store: Store) -> None:
    for step, name in enumerate("abcd"):
        await accept(store, name)
        await store.assign(step, record={"ids": [name], "digest": name}, group_ids=[name], tokens=6)
        await store.commit(step, record={"digest": name.upper()}, tokens=6, rows={name: {"admission": step}})
    counters = await store.counters()
    await store.drop_records(2)
    assert [await store.record("batch", step) is None for step in range(4)] == [True, True, False, False]
    assert [await store.record("commit", step) is None for step in range(4)] == [True, True, False, False]
    assert (await store.last_step("commit"), await store.counters()) == (3, counters)


async def test_hundreds_of_transitions_at_once_all_arrive_in_order(store: Store) -> None:
    names = [f"g{number:03d}" for number in range(300)]
    async with asyncio.TaskGroup() as tasks:
        for number, name in enumerate(names):
            info = {"admission": number}
            tasks.create_task(store.admit({name: info}, cursor=str(number), admissions=number + 1))
    assert (await store.counters())["admitted"] == 300
    assert (await store.meta())["admissions"] == "300"  # the last one that was asked for


async def test_groups_that_are_admitted_together_are_all_there_or_none_and_the_cursor_moves_once(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    for _ in range(2):
        await store.admit({name: {"admission": place} for place, name in enumerate("abc")}, cursor="3", admissions=3)
    client = aioredis.Redis.from_url(redis_server.url)
    await client.config_set("maxmemory", 1)
    with pytest.raises(Overloaded):
        await store.admit({"d": {}, "e": {}}, cursor="5", admissions=5)
    await client.config_set("maxmemory", 0)
    await client.aclose()
    meta, counters = await store.meta(), await store.counters()
    assert (set(await store.live()), meta["cursor"], meta["admissions"]) == ({"a", "b", "c"}, "3", "3")
    assert (counters["admitted"], counters["open"]) == (3, 3)


async def test_a_script_that_a_connection_held_back_changes_nothing_when_it_arrives_at_last(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    """As a proxy or a half-open connection does: the script was repeated over another connection, and the run went on."""
    held: list[tuple[Any, ...]] = []
    calls = store._redis.pipeline

    def pipeline(**how: Any) -> Any:
        pipe = calls(**how)
        evaluate = pipe.evalsha

        def keep(*args: Any) -> Any:
            held.append(args)
            return evaluate(*args)

        pipe.evalsha = keep
        return pipe

    store._redis.pipeline = pipeline  # type: ignore[method-assign]
    await accept(store, "a", "b")
    await store.end("a", was="queued", term="stale", row={"group_id": "a"}, tokens=6)
    await store.set_meta({"cursor": "7"})
    before = (await store.counters(), await store.live(), await store.meta(), (await store.rows(10))[1])
    late = aioredis.Redis.from_url(redis_server.url)
    for number, script in enumerate(held):
        if number < len(held) - 1:
            with pytest.raises(ResponseError, match="LATE"):
                await late.evalsha(*script)
        else:
            await late.evalsha(*script)  # the newest one, whose repetition is the usual case
    await late.aclose()
    assert before == (await store.counters(), await store.live(), await store.meta(), (await store.rows(10))[1])
    newer = Store(url=redis_server.url, run_id="run")
    await newer.open()
    await newer.set_meta({"cursor": "8"})
    await newer.close()


async def test_a_caller_that_gives_up_disturbs_no_other(store: Store) -> None:
    calls = [
        asyncio.create_task(store.admit({name: {"admission": 0}}, cursor="", admissions=1)) for name in ("a", "b", "c")
    ]
    await asyncio.sleep(0)
    calls[1].cancel()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(end) for end in ends] == [type(None), asyncio.CancelledError, type(None)]
    assert {"a", "c"} <= set(await store.live())


async def test_a_fenced_script_fails_alone_and_scripts_that_redis_forgot_are_loaded_again(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    await accept(store, "a")
    other = aioredis.Redis.from_url(redis_server.url)
    await other.script_flush()
    await accept(store, "b")
    assert set(await store.live()) == {"a", "b"}
    await other.aclose()
    newer = Store(url=redis_server.url, run_id="run")
    await newer.open()
    ends = await asyncio.gather(accept(store, "c"), newer.confirm(), return_exceptions=True)
    assert [type(end) for end in ends] == [Fenced, type(None)]
    await newer.close()


async def test_no_script_changes_anything_for_who_was_replaced_or_whose_writes_redis_has_lost(
    redis_server: EmbeddedRedis,
) -> None:
    """Every script asks first, before it looks at its arguments."""
    client = aioredis.Redis.from_url(redis_server.url)
    for script in SCRIPTS:
        former, newer = (Store(url=redis_server.url, run_id="run") for _ in range(2))
        await former.open()
        await accept(former, "a")
        await newer.open()
        await newer.confirm()
        before = {key: await client.dump(key) for key in await client.keys()}
        with pytest.raises(Fenced):
            await former._scripts.run(script)
        assert {key: await client.dump(key) for key in await client.keys()} == before, script
        await client.flushall()
        with pytest.raises(Forgot):
            await newer._scripts.run(script)
        assert await client.keys() == [], script
        await former.close()
        await newer.close()
    await client.aclose()


async def test_a_group_that_is_in_another_state_is_not_moved_and_nothing_else_changes(store: Store) -> None:
    await accept(store, "queued", "assigned")
    await store.admit({"open": {}}, cursor="3", admissions=3)
    await store.assign(0, record={"ids": ["assigned"]}, group_ids=["assigned"], tokens=6)
    before = (await store.counters(), await store.live(), await store.rows(10))
    for name in ("open", "assigned", "unheard of"):
        with pytest.raises(ResponseError, match=f"NOTQUEUED {name}"):
            await store.assign(1, record={"ids": ["queued", name]}, group_ids=["queued", name], tokens=12)
        assert not await store.end(name, was="queued", term="stale", row={}, tokens=6)
    with pytest.raises(ResponseError, match="NOTQUEUED assigned"):
        await store.restore_batch(1, record={}, groups=[("queued", {}, 6), ("assigned", {}, 6)])
    assert not await store.accept("unheard of", info={}, payload=b"", tokens=6, lost=0)
    assert await store.rebook(7, [{"group_id": "queued", "term": "stale", "tokens": 6}]) == 0
    await store.drop_rows(7, 1)  # Redis counts no row in files
    assert (await store.counters(), await store.live(), await store.rows(10)) == before
    assert await store.record("batch", 1) is None


async def test_repeated_transitions_change_nothing(store: Store) -> None:
    await accept(store, "a")
    await store.admit({"a": {"admission": 0}}, cursor="9", admissions=9)
    assert not await store.accept("a", info={"admission": 0}, payload=b"other", tokens=8, lost=0)
    assert await store.payload("a") == b"a"
    first = {"ids": ["a"], "digest": "first"}
    await store.assign(0, record=first, group_ids=["a"], tokens=6)
    assert await store.assign(0, record={"ids": ["x"], "digest": "second"}, group_ids=["x"], tokens=6) == first
    row = {"a": {"admission": 0}}
    await store.commit(0, record={"digest": "w1"}, tokens=6, rows=row)
    assert await store.commit(0, record={"digest": "w2"}, tokens=6, rows=row) == {"digest": "w1"}
    counters = await store.counters()
    assert (counters["admitted"], counters["trained"], counters["tokens:trained"]) == (1, 1, 6)


async def test_a_rollback_that_names_a_group_which_is_not_live_changes_nothing_and_a_repeated_one_neither(
    store: Store,
) -> None:
    await accept(store, "a", "b")
    before = (await store.counters(), await store.meta(), await store.live())
    live = [({"group_id": name}, 6, 0) for name in ("a", "gone")]
    with pytest.raises(ResponseError, match="NOTLIVE gone"):
        await store.roll_back(1, to=0, trained=0, trained_tokens=0, meta={"rollbacks": "[]"}, live=live)
    assert (await store.counters(), await store.meta(), await store.live()) == before
    for _ in range(2):
        await store.roll_back(1, to=0, trained=0, trained_tokens=0, meta={"rollbacks": "[]"}, live=live[:1])
    counters = await store.counters()
    assert (counters["queued"], counters["rollback"]) == (1, 1)
    assert (counters["tokens:queued"], counters["tokens:rollback"]) == (6, 6)
    assert (set(await store.live()), await store.payload("a")) == ({"b"}, None)


@pytest.mark.parametrize("seed", range(6))
async def test_groups_and_tokens_are_conserved_by_any_order_of_transitions_repeated_ones_included(
    store: Store, seed: int
) -> None:
    chance, board = random.Random(seed), Board(train_batch_size=2, gen_batch_size=2, max_staleness=1)
    tokens = [chance.randint(0, 9) for _ in range(60)]
    queued: list[int] = []
    steps = received = 0
    for group in range(60):
        name, lost = str(group), chance.randint(0, 3)
        for _ in range(chance.randint(1, 2)):
            await store.admit({name: {}}, cursor="", admissions=group + 1)
        if (fate := chance.random()) < 0.2:
            continue  # stays open
        received += tokens[group] + lost
        for _ in range(chance.randint(1, 2)):
            if fate < 0.4:
                term = chance.choice(["failed:refused", "filtered_other", "abandoned"])
                await store.end(name, was="open", term=term, row={}, tokens=tokens[group], lost=lost)
            else:
                await store.accept(name, info={}, payload=b"", tokens=tokens[group], lost=lost)
        queued += [group] if fate >= 0.4 else []
        if len(queued) == 3 and chance.random() < 0.5:
            dropped = queued.pop(chance.randrange(3))
            await store.end(str(dropped), was="queued", term="stale", row={}, tokens=tokens[dropped])
        elif len(queued) >= 3:
            batch, queued = queued[:2], queued[2:]
            ids, total = [str(chosen) for chosen in batch], sum(tokens[chosen] for chosen in batch)
            for _ in range(chance.randint(1, 2)):
                await store.assign(steps, record={"ids": ids}, group_ids=ids, tokens=total)
            for _ in range(chance.randint(0, 2)):
                await store.commit(steps, record={}, tokens=total, rows={name: {} for name in ids})
            steps += 1
        counts = count(await store.counters(), board)
        assert counts.closed
        assert (counts.admitted, counts.received_tokens) == (group + 1, received)
        assert min(*counts.terms.values(), *counts.tokens.values()) >= 0
    terms = count(await store.counters(), board).terms
    assert {"trained", "stale", "pending"} <= {term for term, groups in terms.items() if groups}


async def test_an_accepted_group_can_end_as_stale_and_its_payload_goes(store: Store) -> None:
    await accept(store, "a")
    assert await store.end("a", was="queued", term="stale", row={"admission": 0}, tokens=6)
    assert not await store.end("a", was="queued", term="stale", row={"admission": 0}, tokens=6)
    assert await store.payload("a") is None
    counters = await store.counters()
    assert (counters["stale"], counters["tokens:stale"], counters["tokens:queued"]) == (1, 6, 0)


async def test_a_second_coordinator_shuts_the_first_one_out(store: Store, redis_server: EmbeddedRedis) -> None:
    second = Store(url=redis_server.url, run_id="run")
    await second.open()
    with pytest.raises(Fenced):
        await store.admit({"a": {}}, cursor="1", admissions=1)
    await second.admit({"a": {}}, cursor="1", admissions=1)
    await second.close()


async def test_everything_accepted_is_there_again_after_redis_was_killed(tmp_path, store: Store, redis_server) -> None:
    await accept(store, "a", "b")
    redis_server.child.process.kill()
    await redis_server.child.process.wait()
    revived = await start_redis(tmp_path / "redis", log_path=tmp_path / "redis.log", socket_dir=redis_server.socket_dir)
    redis_server.child = revived.child
    assert {name: state for name, (state, _) in (await store.live()).items()} == {"a": "queued", "b": "queued"}
    assert await store.payload("b") == b"b"


async def test_a_redis_without_a_confirmed_write_is_noticed_and_nothing_more_is_written(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    client = aioredis.Redis.from_url(redis_server.url)
    await accept(store, "a")
    writes = "sluice:{run}:writes"
    former = await client.get(writes)
    await accept(store, "b")
    await client.set(writes, former or b"0")  # what it is after the loss of the newest part
    with pytest.raises(Forgot):
        await store.admit({"c": {}}, cursor="3", admissions=3)
    with pytest.raises(Forgot):
        await store.watch()
    assert "c" not in await store.live()
    await client.flushall()
    with pytest.raises(Forgot):
        await store.confirm()
    await client.aclose()


async def test_rows_that_are_in_files_count_once_whatever_redis_still_knows(store: Store) -> None:
    """Redis has one row of three, holds one group as queued and never heard of the third."""
    await accept(store, "a", "b")
    await store.end("a", was="queued", term="stale", row={"group_id": "a"}, tokens=6)
    rows = [{"group_id": name, "term": "stale", "tokens": 6, "lost_tokens": 2} for name in ("a", "b", "c")]
    for forgotten in (2, 0):
        assert await store.rebook(0, rows) == forgotten
        counters = await store.counters()
        assert (counters["admitted"], counters["stale"], counters["queued"]) == (3, 3, 0)
        assert (counters["generated_tokens"], counters["tokens:stale"], counters["lost_tokens"]) == (24, 18, 6)
        assert counters["tokens:queued"] == 0
    assert await store.rows(10) == (3, [])
    assert await store.live() == {}


async def test_a_batch_that_was_forgotten_is_assigned_whatever_became_of_its_groups(store: Store) -> None:
    await accept(store, "a")
    await store.admit({"b": {"admission": 1}}, cursor="2", admissions=2)
    record = {"ids": ["a", "b", "c"], "digest": "d"}
    for _ in range(2):
        await store.restore_batch(3, record=record, groups=[(name, {"name": name}, 6) for name in ("a", "b", "c")])
    assert await store.record("batch", 3) == record
    assert await store.live() == {name: ("assigned", {"name": name}) for name in ("a", "b", "c")}
    counters = await store.counters()
    assert (counters["admitted"], counters["assigned"], counters["open"], counters["queued"]) == (3, 3, 0, 0)
    assert (counters["tokens:assigned"], counters["tokens:queued"], counters["generated_tokens"]) == (18, 0, 20)


async def test_who_is_cancelled_while_redis_answers_ends_there(redis_server: EmbeddedRedis) -> None:
    """Whatever the moment: the client's own waits must not lose it."""
    for turns in range(40):
        store = Store(url=redis_server.url, run_id="run")  # a fresh one, whose first call connects
        call = asyncio.create_task(store.counters())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = call.cancel()
        await asyncio.wait([call])
        assert call.cancelled() == was_cancelled, turns
        await store.close()


async def test_a_coordinator_that_was_replaced_is_shut_out_also_when_redis_forgot_every_fence(
    store: Store, redis_server: EmbeddedRedis
) -> None:
    await accept(store, "a")
    client = aioredis.Redis.from_url(redis_server.url)
    await client.flushall()
    await client.aclose()
    second = Store(url=redis_server.url, run_id="run")
    await second.open()
    await accept(second, "a", "b", "c")  # more writes than the first one was told of
    for late in (store.set_meta({"cursor": "9"}), store.admit({"z": {}}, cursor="9", admissions=9), store.confirm()):
        with pytest.raises(Fenced):
            await late
    assert (await second.meta())["cursor"] == "3"
    await second.close()
