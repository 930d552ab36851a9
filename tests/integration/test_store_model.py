"""The model of the store (store_model.py) against the real scripts in a real Redis: same answers and same contents.

Random ways: calls that fit what Redis holds and calls that do not, of the coordinator in office and of those that it
replaced, while Redis loses its newest part, or everything.
"""

import json
import random
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis
from redis.exceptions import ResponseError

from services.coordinator.state.ports import Forgot
from services.coordinator.storage.redis_store import Store
from sluice.errors import Fenced
from sluice.launch.embedded_redis import EmbeddedRedis
from tests.integration.store_model import (
    ASSIGNED,
    COUNTERS,
    FENCED,
    FILTERED,
    FORGOT,
    NOT_QUEUED,
    OPEN,
    QUEUED,
    SCRIPTS,
    STALE,
    TRAINED,
    Guard,
    Redis,
    call,
    lost_of,
    take_over,
    tokens_of,
)

pytestmark = pytest.mark.integration

EVENTS = 400
"""Of each way."""

STEPS = 20


class Chance:
    """Draws calls: most of them could be made, some could not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def call(self, redis: Redis) -> tuple[str, tuple]:
        """The name of a script and its arguments."""
        name = self.random.choice([*SCRIPTS, "admit", "admit", "accept", "accept", "accept", "assign", "commit"])
        return name, getattr(self, f"_{name}")(redis)

    def _admit(self, redis: Redis) -> tuple:
        return (redis.admissions if self._usual() else self._any_group(redis),)

    def _accept(self, redis: Redis) -> tuple:
        return self._in(redis, OPEN), self.random.randrange(3)

    def _end(self, redis: Redis) -> tuple:
        was = self.random.choice([OPEN, QUEUED, ASSIGNED])
        return self._in(redis, was), was, self.random.choice([FILTERED, STALE])

    def _assign(self, redis: Redis) -> tuple:
        return self._step(), self._some(redis, QUEUED)

    def _commit(self, redis: Redis) -> tuple:
        """Of groups that are assigned, as every caller sees to."""
        assigned = [group for group, state, _ in redis.live if state == ASSIGNED]
        return self._step(), tuple(assigned[: self.random.randrange(4)])

    def _drop_rows(self, redis: Redis) -> tuple:
        return self._rows_in_files(redis), self.random.randint(0, len(redis.rows))

    def _confirm(self, redis: Redis) -> tuple:
        return ()

    def _set_learner(self, redis: Redis) -> tuple:
        return self.random.randrange(9), self.random.randrange(9)

    def _set_admissions(self, redis: Redis) -> tuple:
        return (redis.admissions + self.random.randrange(3),)

    def _restore_batch(self, redis: Redis) -> tuple:
        ids = tuple(dict.fromkeys([*self._some(redis, OPEN), *self._some(redis, QUEUED), self._any_group(redis)]))
        return self._step(), ids, tuple((group, self.random.randrange(3)) for group in ids[1:])

    def _rebook(self, redis: Redis) -> tuple:
        terms = [(self._any_group(redis), self.random.choice([FILTERED, STALE])) for _ in range(3)]
        return self._rows_in_files(redis), (*redis.rows[: self.random.randrange(4)], *terms)

    def _usual(self) -> bool:
        return self.random.random() < 0.8

    def _step(self) -> int:
        return self.random.randrange(STEPS)

    def _rows_in_files(self, redis: Redis) -> int:
        return redis.rows_in_files if self._usual() else self.random.randrange(9)

    def _any_group(self, redis: Redis) -> int:
        return self.random.randrange(redis.admissions + 2)

    def _in(self, redis: Redis, state: str) -> int:
        found = [group for group, now, _ in redis.live if now == state]
        return self.random.choice(found) if found and self._usual() else self._any_group(redis)

    def _some(self, redis: Redis, state: str) -> tuple[int, ...]:
        return tuple({self._in(redis, state): None for _ in range(self.random.randint(1, 3))})


class Way:
    """The model and a real Redis, side by side."""

    def __init__(self, client: aioredis.Redis, url: str, seed: int) -> None:
        self.client, self.url, self.run_id = client, url, f"way{seed}"
        self.chance = Chance(seed)
        self.redis, self.kept = Redis(), (Redis(), {})
        self.coordinators: list[tuple[Guard, Store]] = []
        """The last one is in office."""
        self.answers: dict[str, set[str]] = {name: set() for name in SCRIPTS}

    async def event(self) -> None:
        """A script; now and then Redis is saved, or loses what came since or everything, or a coordinator takes over."""
        match self.chance.random.random():
            case rare if rare < 0.01:
                self.kept = (self.redis, await self._keys())
            case rare if rare < 0.02:
                await self._lose(*(self.kept if self.chance.random.random() < 0.7 else (Redis(), {})))
            case rare if rare < 0.05 or not self.coordinators:
                await self._take_over()
            case _:
                await self._call()

    async def _take_over(self) -> None:
        store = Store(url=self.url, run_id=self.run_id)
        await store.open()
        self.redis = take_over(self.redis, newest=max((guard.fence for guard, _ in self.coordinators), default=0))
        self.coordinators.append((Guard(self.redis.fence, 0), store))

    async def _call(self) -> None:
        place = -1 if self.chance.random.random() < 0.9 else self.chance.random.randrange(len(self.coordinators))
        guard, store = self.coordinators[place]
        name, args = self.chance.call(self.redis)
        after, answer = call(self.redis, guard, name, args)
        assert await _answer(store, name, args) == answer, (name, args, self.redis)
        if answer not in (FENCED, FORGOT, NOT_QUEUED):
            self.coordinators[place] = (guard._replace(seen=max(guard.seen, after.writes)), store)
        self.redis = after
        self.answers[name].add(answer if answer in (FENCED, FORGOT, NOT_QUEUED) else "done")

    async def _keys(self) -> dict[bytes, bytes]:
        keys = [key async for key in self.client.scan_iter(match=f"sluice:{{{self.run_id}}}:*", count=1000)]
        return {key: await self.client.dump(key) for key in keys}  # type: ignore[misc]

    async def _lose(self, redis: Redis, contents: dict[bytes, bytes]) -> None:
        for key in await self._keys():
            await self.client.delete(key)
        for key, value in contents.items():
            await self.client.restore(key, 0, value)
        self.redis = redis

    async def contents(self) -> Redis:
        """Everything but the fence, as the model keeps it."""
        store = Store(url=self.url, run_id=self.run_id)
        counters, meta, live = await store.counters(), await store.meta(), await store.live()
        in_files, rows = await store.rows(1000)
        batches = await self.client.hgetall(f"sluice:{{{self.run_id}}}:batch")
        commits = await self.client.hkeys(f"sluice:{{{self.run_id}}}:commit")
        queued = [group for group, (state, _) in live.items() if state == QUEUED]
        payloads = await store.payloads(queued) if queued else []
        assert all(payloads)
        assert await self.client.xlen(f"sluice:{{{self.run_id}}}:groups") == len(payloads)
        fence, process = meta.get("learner", "0 0").split()
        writes = int(await self.client.get(f"sluice:{{{self.run_id}}}:writes") or 0)
        await store.close()
        return Redis(
            writes=writes,
            live=tuple(sorted((int(group), state, info.get("oldest", -1)) for group, (state, info) in live.items())),
            batches=tuple(sorted((int(step), tuple(json.loads(record)["ids"])) for step, record in batches.items())),
            commits=tuple(sorted(map(int, commits))),
            counters=tuple(counters.get(name, 0) for name in COUNTERS),
            rows=tuple((int(row["group_id"]), row["term"]) for row in rows),
            rows_in_files=in_files,
            admissions=int(meta.get("admissions", 0)),
            learner=(int(fence), int(process)),
        )

    async def close(self) -> None:
        for _, store in self.coordinators:
            await store.close()


async def _answer(store: Store, name: str, args: tuple) -> object:
    """What the real script answers, said as the model says it."""
    try:
        return await _asked(store, name, args)
    except Fenced:
        return FENCED
    except Forgot:
        return FORGOT
    except ResponseError as refusal:
        return NOT_QUEUED if NOT_QUEUED in str(refusal) else str(refusal)


async def _asked(store: Store, name: str, args: tuple) -> object:
    """One call of the model to the real store."""
    match name, args:
        case "admit", (group,):
            return await store.admit(str(group), info={}, cursor=str(group + 1), admissions=group + 1)
        case "accept", (group, oldest):
            tokens, lost = tokens_of(group), lost_of(group)
            return await store.accept(str(group), info={"oldest": oldest}, payload=b"p", tokens=tokens, lost=lost)
        case "end", (group, was, term):
            lost = lost_of(group) if was == OPEN else 0
            return await store.end(
                str(group), was=was, term=term, row=_row(group, term), tokens=tokens_of(group), lost=lost
            )
        case "assign", (step, ids):
            record, names = {"ids": list(ids)}, [str(group) for group in ids]
            recorded = await store.assign(step, record=record, group_ids=names, tokens=sum(map(tokens_of, ids)))
            return tuple(recorded["ids"])
        case "commit", (step, ids):
            rows = {str(group): _row(group, TRAINED) for group in ids}
            recorded = await store.commit(step, record={"step": step}, tokens=sum(map(tokens_of, ids)), rows=rows)
            return recorded["step"]
        case "drop_rows", (before, count):
            return await store.drop_rows(before, count)
        case "confirm", ():
            return await store.confirm()
        case "set_learner", (fence, process):
            return await store.set_meta({"learner": f"{fence} {process}"})
        case "set_admissions", (admissions,):
            return await store.set_meta({"cursor": str(admissions), "admissions": str(admissions)})
        case "restore_batch", (step, ids, groups):
            told = [(str(group), {"oldest": oldest}, tokens_of(group)) for group, oldest in groups]
            return await store.restore_batch(step, record={"ids": list(ids)}, groups=told)
        case "rebook", (before, rows):
            return await store.rebook(before, [_row(group, term) for group, term in rows])
    raise NotImplementedError(name)


def _row(group: int, term: str) -> dict[str, object]:
    return {"group_id": str(group), "term": term, "tokens": tokens_of(group), "lost_tokens": lost_of(group)}


@pytest.fixture
async def client(redis_server: EmbeddedRedis) -> AsyncIterator[aioredis.Redis]:
    made = aioredis.Redis.from_url(redis_server.url)
    await made.config_set("appendfsync", "no")  # nothing is killed here
    yield made
    await made.aclose()


async def test_the_real_scripts_answer_as_the_model_does_on_random_ways(
    client: aioredis.Redis, redis_server: EmbeddedRedis
) -> None:
    seen: dict[str, set[str]] = {name: set() for name in SCRIPTS}
    for seed in range(4):
        way = Way(client, redis_server.url, seed)
        for number in range(EVENTS):
            await way.event()
            if number % 20 == 19:
                assert await way.contents() == way.redis._replace(fence=0)
        await way.close()
        for name, answers in way.answers.items():
            seen[name] |= answers
    assert all({"done", FENCED, FORGOT} <= answers for answers in seen.values()), seen
    assert NOT_QUEUED in seen["assign"] & seen["restore_batch"]
