"""The model of the store (unit/coordinator/store_model.py) against the real scripts in a real Redis: same answers and contents.

Random ways through the model of a run - with every accident, operations that are broken off, repairs, a Redis put back to
an earlier moment - are gone with real stores beside it.
"""

import random
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis

from services.coordinator.state.ports import Forgot
from services.coordinator.storage.redis_store import Store
from sluice.errors import Fenced
from sluice.launch.embedded_redis import EmbeddedRedis
from tests.unit.coordinator import run_model, store_model
from tests.unit.coordinator.run_model import Coordinator, Setting, State, start, successors, zombie_attempts
from tests.unit.coordinator.store_model import COUNTERS, FENCED, FORGOT, OPEN, QUEUED, Guard, Redis, lost_of, tokens_of

pytestmark = pytest.mark.integration

WAYS = 40
"""In each setting."""

ACCIDENTS = ("dies", "freezes", "killed", "comes back", "synced")
"""Words of events that are to be rare, or they would all come at the beginning."""

SETTINGS = [
    Setting(
        steps=3,
        checkpoint_every=2,
        gen_batch=3,
        queue_groups=2,
        rollouts=2,
        rejections=2,
        staleness=staleness,
        coordinator_crashes=2,
        coordinator_freezes=1,
        learner_crashes=2,
        rollout_crashes=1,
        redis_losses=2,
    )
    for staleness in (0, 1)
]


class Twin:
    """A real Redis that goes the way of the model."""

    def __init__(self, client: aioredis.Redis, url: str, run_id: str) -> None:
        self.client, self.url, self.run_id = client, url, run_id
        self.stores: dict[int, Store] = {}
        """By the fence that the model gave to the coordinator."""
        self.synced: dict[bytes, bytes] | None = None
        self.calls = 0

    async def take_over(self, fence: int) -> None:
        """A new coordinator."""
        self.stores[fence] = Store(url=self.url, run_id=self.run_id)
        await self.stores[fence].open()

    async def call(self, guard: Guard, name: str, args: tuple) -> object:
        """What the real script answers, said as the model says it."""
        self.calls += 1
        try:
            return await _asked(self.stores[guard.fence], name, args)
        except Fenced:
            return FENCED
        except Forgot:
            return FORGOT

    async def sync(self) -> None:
        """This moment is the one that a loss goes back to."""
        keys = [key async for key in self.client.scan_iter(match=f"sluice:{{{self.run_id}}}:*", count=1000)]
        self.synced = {key: await self.client.dump(key) for key in keys}  # type: ignore[misc]

    async def lose(self, *, everything: bool) -> None:
        """Back to that moment, or empty."""
        keys = [key async for key in self.client.scan_iter(match=f"sluice:{{{self.run_id}}}:*", count=1000)]
        if keys:
            await self.client.delete(*keys)
        for key, value in ({} if everything else self.synced or {}).items():
            await self.client.restore(key, 0, value)

    async def contents(self) -> Redis:
        """Everything but the fence, as the model keeps it."""
        store = Store(url=self.url, run_id=self.run_id)
        counters, meta, live = await store.counters(), await store.meta(), await store.live()
        in_files, rows = await store.rows(1000)
        batches = [(step, await store.record("batch", step)) for step in range(4)]
        commits = [step for step in range(4) if await store.record("commit", step) is not None]
        payloads = [bool(await store.payload(group)) for group, (state, _) in live.items() if state == QUEUED]
        assert all(payloads)
        assert await self.client.xlen(f"sluice:{{{self.run_id}}}:groups") == len(payloads)
        fence, process = meta.get("learner", "0 0").split()
        writes = int(await self.client.get(f"sluice:{{{self.run_id}}}:writes") or 0)
        await store.close()
        return Redis(
            writes=writes,
            live=tuple(sorted((int(group), state, info.get("oldest", -1)) for group, (state, info) in live.items())),
            batches=tuple((step, tuple(record["ids"])) for step, record in batches if record is not None),
            commits=tuple(commits),
            counters=tuple(counters.get(name, 0) for name in COUNTERS),
            rows=tuple((int(row["group_id"]), row["term"]) for row in rows),
            rows_in_files=in_files,
            admissions=int(meta.get("admissions", 0)),
            learner=(int(fence), int(process)),
        )

    async def close(self) -> None:
        for store in self.stores.values():
            await store.close()


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
            rows = {str(group): _row(group, store_model.TRAINED) for group in ids}
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


class Calls:
    """Stands between the model and its scripts, and remembers what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._made: list[tuple[Redis, Guard, str, tuple, object, Redis]] = []
        monkeypatch.setattr(run_model, "call", self._call)

    def _call(self, redis: Redis, guard: Guard, name: str, args: tuple, **rules: store_model.Rules):
        after, answer = store_model.call(redis, guard, name, args, **rules)
        self._made.append((redis, guard, name, args, answer, after))
        return after, answer

    def events(self, state: State, setting: Setting) -> list[tuple[str, State, list]]:
        """Every event that may come next, with its calls to Redis."""
        found = []
        self._made = []
        for label, after in successors(state, setting):
            found.append((label, after, self._between(state.redis, after.redis)))
        return found

    def _between(self, before: Redis, after: Redis) -> list:
        """The newest chain of calls that leads from one to the other."""
        for first in reversed(range(len(self._made))):
            if self._made[first][0] is not before:
                continue
            chain = []
            for made in self._made[first:]:
                if chain and made[0] is not chain[-1][5]:
                    break
                chain.append(made)
                if made[5] == after:
                    return chain
        return []


@pytest.fixture
async def client(redis_server: EmbeddedRedis) -> AsyncIterator[aioredis.Redis]:
    made = aioredis.Redis.from_url(redis_server.url)
    await made.config_set("appendfsync", "no")  # nothing is killed here
    yield made
    await made.aclose()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda made: f"K={made.staleness}")
async def test_the_real_scripts_answer_as_the_model_does_on_random_ways(
    setting: Setting, client: aioredis.Redis, redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, chance, names, asked = Calls(monkeypatch), random.Random(0), set(), 0
    for way in range(WAYS):
        twin, state, gone = Twin(client, redis_server.url, f"way{way}"), start(setting), []
        while events := calls.events(state, setting):
            weights = [0.05 if any(word in label for word in ACCIDENTS) else 1.0 for label, _, _ in events]
            label, after, made = chance.choices(events, weights)[0]
            gone.append(label)
            for _, guard, name, args, answer, _ in made:
                assert await twin.call(guard, name, args) == answer, (name, args, gone)
                names.add(name)
            await _beside(twin, state, label, after)
            if chance.random() < 0.03:
                assert await twin.contents() == after.redis._replace(fence=0), gone
            if after.zombie is not None and after.coordinator is not None and chance.random() < 0.2:
                await _zombie_wakes(twin, after.zombie, after, gone)
            state = after
            if len(gone) == 150:
                break
        assert await twin.contents() == state.redis._replace(fence=0), gone
        await twin.close()
        asked += twin.calls
    print(f"{WAYS} ways, {asked} calls of {len(names)} kinds")
    assert names == set(store_model.SCRIPTS)


async def _beside(twin: Twin, state: State, label: str, after: State) -> None:
    """What an event does to Redis that is no script."""
    if label == "a coordinator starts":
        assert after.coordinator is not None
        await twin.take_over(after.coordinator.fence)
    elif label == "the append-only file is synced for the last time":
        await twin.sync()
    elif label.startswith("redis comes back"):
        await twin.lose(everything=label == "redis comes back empty")


async def _zombie_wakes(twin: Twin, zombie: Coordinator, state: State, gone: list[str]) -> None:
    """It is told what the model says, whatever it tries."""
    for name, args in zombie_attempts(zombie):
        _, answer = store_model.call(state.redis, zombie.guard, name, args, rules=store_model.Rules())
        if answer in (FENCED, FORGOT):
            assert await twin.call(zombie.guard, name, args) == answer, (name, args, gone)
