"""The coordinator's durable state in Redis: group states, the stream of accepted groups, batches, commits, counters.

Every transition is one Lua script: atomic, fenced, and without effect when repeated. A second coordinator raises the
fence, after which every script of the first coordinator answers FENCED. A Redis that has lost a confirmed write of this
process answers FORGOT: this process's memory is then ahead of Redis, so the process has to end and start from Redis.
Nothing here knows of gRPC or decides anything about RL.

Keys, all under `sluice:{KEYS}:`, where KEYS is the run's name and random id (identity.py)
  fence        integer, raised by each coordinator that takes over the run, to the time at least: Unix, in milliseconds
  state        hash  group id -> open | queued | assigned            (only live groups)
  info         hash  group id -> JSON facts of a live group
  groups       stream of accepted payloads; `entry` hash: group id -> stream id
  batch        hash  step -> JSON {ids, digest}, written before a batch is handed out
  commit       hash  step -> JSON {lineage, number, digest}
  counter      hash  ledger term -> groups, `tokens:` + term -> their completion tokens, and what was received or lost
  rows         list  JSON ledger rows of ended groups, until they are in a Parquet file
  meta         hash  cursor, admissions, run state, rollbacks ...
  writes       integer, scripts that were run: one that is smaller than it was has lost its end
  round        integer, the newest round trip of the holder of the fence: scripts of an earlier one are refused
  owner        id of the run directory
"""

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from services.coordinator.storage.lua import TAKE_OVER
from services.coordinator.storage.redis_access import RedisAccess
from services.coordinator.storage.redis_disk import RedisDisk
from services.coordinator.storage.redis_scripts import RedisScripts
from services.coordinator.storage.redis_server import check_server, shut_down_server
from sluice.clock import SystemClock
from sluice.errors import LaunchError
from sluice.run_dir.full_disk import DiskWaits

RECENT_ROWS = 10_000
ROWS_AT_ONCE = 100
"""Rows that are searched between two turns of the event loop: some milliseconds."""

PAYLOADS_AT_ONCE = 16
"""Payloads read in one round trip: a large payload has megabytes."""
NO_ENTRY = "0-0"
"""A stream id that Redis never gives out."""


class Store:
    """The coordinator's Redis.

    Methods raise Fenced, Unavailable (Redis is away), Forgot (Redis is back without its newest writes) or Overloaded
    (Redis is full). All methods wait while Redis's disk is full.
    """

    def __init__(
        self,
        *,
        url: str,
        run_id: str,
        patience: int = 30,
        access: RedisAccess | None = None,
        disk: DiskWaits | None = None,
    ) -> None:
        # A repeated command has no effect, so the client repeats commands to a Redis that restarts (about a minute).
        self._url, self._access = url, access or RedisAccess()
        self._redis = self._access.connect(url, retries=patience)
        self._disk = RedisDisk(url=url, disk=disk or DiskWaits(clock=SystemClock()))
        prefix = self.prefix = f"sluice:{{{run_id}}}:"
        names = (
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
            "owner",
        )
        self._key: dict[str, str] = {name: prefix + name for name in names}
        self._scripts = RedisScripts(self._redis, keys=list(self._key.values()), disk=self._disk)
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT_ROWS)
        """Rows, without lists, of the groups that ended last in this process's time, oldest first."""
        self.rows_written = 0
        """Rows that this process has written, also rows that are in files by now."""

    async def open(self, *, most_queued_bytes: int = 0) -> None:
        """Checks the server and takes over the run, whoever's it is. Raises LaunchError or ConfigError with the fix."""
        await self.check(most_queued_bytes=most_queued_bytes)
        await self.take_over()

    async def check(self, *, most_queued_bytes: int = 0) -> None:
        """See `check_server`."""
        await check_server(self._url, self._access, most_queued_bytes=most_queued_bytes)

    async def take_over(self, *, owner: str = "", by_force: bool = False) -> None:
        """Fences off every earlier coordinator. `owner` is the run directory's id.

        Raises LaunchError when the run is another directory's, unless `by_force`.
        """
        now_ms = time.time_ns() // 1_000_000
        await self._scripts.load()
        await self._scripts.call(lambda: self._disk.find(self._redis))
        keys = [self._key[name] for name in ("fence", "round", "owner")]

        def take_over() -> Awaitable[Any]:
            return self._scripts.once(self._redis.eval(TAKE_OVER, len(keys), *keys, now_ms, owner, int(by_force)))

        fence = int(await self._disk.written(take_over, size_bytes=0))
        if not fence:
            raise LaunchError(
                f"redis: the keys {self.prefix}* are of another run directory than this one (its id is not {owner}); give "
                "this run another Redis (network.redis_url: another server, or another database of this one)"
            )
        self._scripts.fence = fence

    @property
    def fence(self) -> int:
        """The fence that this process holds; 0 before it takes over."""
        return self._scripts.fence

    async def exists(self) -> bool:
        """Whether a coordinator ever took over a run with these keys."""
        return bool(await self._scripts.call(lambda: self._redis.exists(self._key["fence"])))

    async def owner(self) -> str | None:
        """The id of the run directory; None for a run of an older version."""
        found = await self._scripts.call(lambda: self._redis.get(self._key["owner"]))
        return None if found is None else found.decode()

    async def close(self) -> None:
        """Closes the connections, when no caller waits for a script any more."""
        await self._scripts.close()
        await self._redis.aclose()

    async def shut_down_server(self) -> None:
        """See `shut_down_server` of redis_server.py."""
        await shut_down_server(self._url, self._access)

    async def admit(self, infos: Mapping[str, Mapping[str, Any]], *, cursor: str, admissions: int) -> None:
        """Opens new groups, given by id, and moves the prompt cursor behind the last of them, atomically."""
        parts = [part for group_id, info in infos.items() for part in (group_id, json.dumps(info))]
        await self._scripts.run("admit", cursor, admissions, *parts)

    async def accept(self, group_id: str, *, info: Mapping[str, Any], payload: bytes, tokens: int, lost: int) -> bool:
        """Moves a group from open to queued, with its payload; False when the group was not open.

        `tokens` counts the samples' tokens, `lost` the tokens of samples received and thrown away.
        """
        return bool(await self._scripts.run("accept", group_id, json.dumps(info), payload, tokens, lost))

    async def end(
        self, group_id: str, *, was: str, term: str, row: Mapping[str, Any], tokens: int, lost: int = 0
    ) -> bool:
        """Ends a live group under a terminal term; False when the group was not in state `was`.

        `tokens` counts the samples' tokens, as counted at the acceptance; `lost` is for an open group alone.
        """
        ended = bool(await self._scripts.run("end", group_id, was, term, json.dumps(row), tokens, lost))
        if ended:
            self._remember(row)
        return ended

    async def assign(
        self, step: int, *, record: Mapping[str, Any], group_ids: Sequence[str], tokens: int
    ) -> dict[str, Any]:
        """Fixes batch `step`, with `tokens` in all; returns the record, which is the older one if the batch has a record."""
        return json.loads(await self._scripts.run("assign", step, json.dumps(record), tokens, *group_ids))

    async def commit(
        self, step: int, *, record: Mapping[str, Any], tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Moves the groups of batch `step` from assigned to trained; returns the record, the older one if there is one."""
        pairs = [part for group_id, row in rows.items() for part in (group_id, json.dumps(row))]
        recorded = json.loads(await self._scripts.run("commit", step, json.dumps(record), tokens, *pairs))
        for row in rows.values():
            self._remember(row)
        return recorded

    async def set_aside(
        self, step: int, *, digest: str, term: str, tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> bool:
        """Ends the groups of batch `step` under `term` and forgets the batch; False unless the batch has this digest and no
        commit."""
        pairs = [part for group_id, row in rows.items() for part in (group_id, json.dumps(row))]
        ended = bool(await self._scripts.run("set_aside", step, digest, term, tokens, *pairs))
        for row in rows.values() if ended else ():
            self._remember(row)
        return ended

    def _remember(self, row: Mapping[str, Any]) -> None:
        self.recent.append(_plain(row))
        self.rows_written += 1

    async def payload(self, group_id: str) -> bytes | None:
        """The payload of a queued group; None for a group that is not queued."""
        return (await self.payloads([group_id]))[0]

    async def payloads(self, group_ids: Sequence[str]) -> list[bytes | None]:
        """The `payload` of each group."""
        entries = await self._scripts.call(lambda: self._redis.hmget(self._key["entry"], list(group_ids)))
        found: list[bytes | None] = []
        for first in range(0, len(entries), PAYLOADS_AT_ONCE):
            answers = await self._scripts.call(partial(self._entries, entries[first : first + PAYLOADS_AT_ONCE]))
            found += [answer[0][1][b"payload"] if answer else None for answer in answers]
        return found

    def _entries(self, entries: Sequence[bytes | None]) -> Awaitable[list[Any]]:
        """The entries of the stream, in one round trip."""
        pipe = self._redis.pipeline(transaction=False)
        for entry in entries:
            pipe.xrange(self._key["groups"], min=entry or NO_ENTRY, max=entry or NO_ENTRY)
        return pipe.execute()

    async def live(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """group id -> (state, info) of every live group."""
        states = await self._scripts.call(lambda: self._redis.hgetall(self._key["state"]))
        infos = await self._scripts.call(lambda: self._redis.hgetall(self._key["info"]))
        return {group.decode(): (state.decode(), json.loads(infos[group])) for group, state in states.items()}

    async def record(self, kind: str, step: int) -> dict[str, Any] | None:
        """The `batch` or `commit` record of a step."""
        found = await self._scripts.call(lambda: self._redis.hget(self._key[kind], str(step)))
        return None if found is None else json.loads(found)

    async def last_step(self, kind: str) -> int:
        """The largest step with a `batch` or `commit` record; -1 without a record."""
        return max(
            (int(step) for step in await self._scripts.call(lambda: self._redis.hkeys(self._key[kind]))), default=-1
        )

    async def counters(self) -> dict[str, int]:
        """Every counter."""
        found = await self._scripts.call(lambda: self._redis.hgetall(self._key["counter"]))
        return {name.decode(): int(value) for name, value in found.items()}

    async def meta(self) -> dict[str, str]:
        """Cursor, admissions, run state and the like."""
        found = await self._scripts.call(lambda: self._redis.hgetall(self._key["meta"]))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def set_meta(self, values: Mapping[str, str]) -> None:
        """Sets entries of `meta`."""
        await self._scripts.run("set_meta", *(part for pair in values.items() for part in pair))

    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rows are in files already, and the oldest `limit` rows that are not."""
        before = await self._scripts.call(lambda: self._redis.hget(self._key["meta"], "rows_in_files"))
        found = await self._scripts.call(lambda: self._redis.lrange(self._key["rows"], 0, limit - 1))
        return int(before or 0), await asyncio.to_thread(lambda: [json.loads(row) for row in found])

    async def find_row(self, is_it: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """The newest row outside the files for which `is_it` is true; None when no such row is in Redis."""
        for last in itertools.count(
            -1, -ROWS_AT_ONCE
        ):  # from the end, because rows that leave meanwhile leave at the front
            before = partial(self._redis.lrange, self._key["rows"], last - ROWS_AT_ONCE + 1, last)
            found = await self._scripts.call(before)
            for row in map(json.loads, reversed(found)):
                if is_it(row):
                    return row
            if len(found) < ROWS_AT_ONCE:
                return None
        return None

    async def drop_rows(self, before: int, count: int) -> None:
        """Removes the oldest `count` rows, which are in a file; does nothing unless `before` still counts the rows in files."""
        await self._scripts.run("drop_rows", before, count)

    async def drop_records(self, before: int) -> None:
        """Forgets batches and commits of steps before `before`, so that Redis does not grow with the length of a run."""
        await self._scripts.run("drop_records", before)

    async def watch(self) -> None:
        """Waits until a call finds that Redis has lost writes, then raises Forgot."""
        await self._scripts.forgotten()

    async def confirm(self) -> None:
        """Raises Forgot when Redis has lost writes."""
        await self._scripts.run("confirm")

    async def restore_batch(
        self, step: int, *, record: Mapping[str, Any], groups: Sequence[tuple[str, Mapping[str, Any], int]]
    ) -> None:
        """Assigns batch `step` of (group id, info, tokens), whatever Redis knew of the groups; does nothing if assigned."""
        parts = [part for group_id, info, tokens in groups for part in (group_id, json.dumps(info), tokens)]
        await self._scripts.run("restore_batch", step, json.dumps(record), *parts)

    async def rows_in_files(self) -> int:
        """Redis's count of the rows in files."""
        return int(await self._scripts.call(lambda: self._redis.hget(self._key["meta"], "rows_in_files")) or 0)

    async def rebook(self, before: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Books the rows in files after the first `before`; returns how many of these rows Redis had forgotten."""
        parts = [
            part
            for row in rows
            for part in (row["group_id"], row["term"], int(row["tokens"] or 0), int(row.get("lost_tokens") or 0))
        ]
        return int(await self._scripts.run("rebook", before, *parts))

    async def roll_back(
        self,
        number: int,
        *,
        to: int,
        trained: int,
        trained_tokens: int,
        meta: Mapping[str, str],
        live: Sequence[tuple[Mapping[str, Any], int, int]],
    ) -> None:
        """Decides rollback `number`: removes records from step `to` on, gives up `trained` groups and the `live` groups.

        A live group is (row, tokens of its samples, tokens lost, the latter for an open group alone). Does nothing for a
        rollback that was decided before.
        """
        entries = [part for pair in meta.items() for part in pair]
        groups = [part for row, tokens, lost in live for part in (row["group_id"], json.dumps(row), tokens, lost)]
        await self._scripts.run("roll_back", number, to, trained, trained_tokens, len(meta), *entries, *groups)

    async def forget(self, number: int, *, rollbacks: str) -> None:
        """Empties a Redis that does not know of rollback `number`, because all its facts are older; repair.py follows."""
        await self._scripts.run("forget", number, rollbacks)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its lists, which are by far its larger part, for lists of groups."""
    return {name: value for name, value in row.items() if not isinstance(value, list)}
