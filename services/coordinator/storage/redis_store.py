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
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.coordinator.state.ports import Forgot
from services.coordinator.storage.lua import SCRIPTS, TAKE_OVER
from services.coordinator.storage.redis_access import RedisAccess
from services.coordinator.storage.redis_disk import RedisDisk
from sluice.clock import SystemClock
from sluice.errors import ConfigError, DiskFull, Fenced, LaunchError, Overloaded, Unavailable
from sluice.run_dir.full_disk import DiskWaits

log = structlog.get_logger(__name__)

MINIMUM_VERSION = (6, 2)

RECENT_ROWS = 10_000
ROWS_AT_ONCE = 100
"""Rows that are searched between two turns of the event loop: some milliseconds."""

FORGOT = (
    "redis has lost what it had confirmed (was it killed without appendfsync always, or emptied?): this coordinator ends; "
    "started again, it goes on from what is left, and the learner tells it the rest"
)

MEMORY_A_PAYLOAD_BYTE = 1.25
"""Redis memory for a byte of payload. Measured: 1.04 at 2 kB a payload, 1.01 at 20 kB; the rest is for facts, rows and
connections."""

SENT_AT_ONCE_BYTES = 16 << 20
"""Limit of the scripts of one round trip together (a single script may be larger): Redis answers nobody else meanwhile."""

PAYLOADS_AT_ONCE = 16
"""Payloads read in one round trip: a large payload has megabytes."""
NO_ENTRY = "0-0"
"""A stream id that Redis never gives out."""

OPEN_TIMEOUT_S, OPEN_RETRIES = 15.0, 4
"""How long `open` waits for a Redis that may just be starting: 15 s for an answer, some seconds of refused connections."""


class Store:
    """The coordinator's Redis.

    Methods raise Fenced, Unavailable (Redis is away), Forgot (Redis is back without its newest writes) or Overloaded (Redis
    is full). They wait while Redis's disk is full.
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
        self._keys = [prefix + name for name in names]
        self._key: dict[str, str] = dict(zip(names, self._keys, strict=True))
        self._scripts = {name: self._redis.register_script(text) for name, text in SCRIPTS.items()}
        self.fence = 0
        self._round = 0
        self._seen = 0
        """The largest number of writes that Redis has confirmed to this process."""
        self._asked: deque[_Asked] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._forgot = asyncio.Event()
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=RECENT_ROWS)
        """Rows, without lists, of the groups that ended last in this process's time, oldest first."""
        self.rows_written = 0
        """Rows that this process has written, also rows that are in files by now."""

    async def open(self, *, most_queued_bytes: int = 0) -> None:
        """Checks the server and takes over the run, whoever's it is. Raises LaunchError or ConfigError with the fix."""
        await self.check(most_queued_bytes=most_queued_bytes)
        await self.take_over()

    async def check(self, *, most_queued_bytes: int = 0) -> None:
        """Checks the server and changes nothing. Raises LaunchError or ConfigError with the fix.

        `most_queued_bytes` is the largest size of the queue, to compare with a server's memory limit.
        """
        self._access.check(self._url)
        try:
            async with (
                asyncio.timeout(OPEN_TIMEOUT_S),
                self._access.connect(self._url, retries=OPEN_RETRIES) as connection,
            ):
                info = await connection.info("server")
                memory = await connection.config_get("maxmemory*")
                persistence = await connection.config_get("append*")
        except (RedisError, OSError) as error:
            why = str(error) or f"no answer in {OPEN_TIMEOUT_S:.0f} s"
            raise LaunchError(
                f"redis: cannot use the server: {why} Is it running, does network.redis_url name it, and is the password "
                "(network.redis_password_file) its own?"
            ) from error
        version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
        if version < MINIMUM_VERSION:
            raise ConfigError(f"redis: version must be >= 6.2, got {info['redis_version']}; upgrade the server")
        limit = int(memory.get("maxmemory") or 0)
        if limit and memory.get("maxmemory-policy") != "noeviction":
            raise ConfigError(
                f"redis: maxmemory-policy must be noeviction, got {memory.get('maxmemory-policy')}; any other may evict "
                "accepted groups. Set it with `redis-cli config set maxmemory-policy noeviction`"
            )
        needed = int(most_queued_bytes * MEMORY_A_PAYLOAD_BYTE)
        if limit and limit < needed:
            raise ConfigError(
                f"redis: maxmemory must be >= {needed} bytes, got {limit}: so much may be queued. Raise it with "
                f"`redis-cli config set maxmemory {needed}`, or lower coordinator.queue_max_bytes or coordinator.max_staleness"
            )
        if persistence.get("appendonly") != "yes":
            log.warning(
                "redis_without_append_only_file",
                consequence="a Redis that dies comes back empty: what was accepted and not assigned is generated again",
                fix="redis-cli config set appendonly yes, and appendonly yes in its configuration file",
            )
        elif persistence.get("appendfsync") != "always":
            log.warning(
                "redis_syncs_late",
                appendfsync=persistence.get("appendfsync"),
                consequence="a Redis that dies may forget its last writes: what it forgot is generated again",
                fix="redis-cli config set appendfsync always, and appendfsync always in its configuration file",
            )

    async def take_over(self, *, owner: str = "", by_force: bool = False) -> None:
        """Fences off every earlier coordinator. `owner` is the run directory's id.

        Raises LaunchError when the run is another directory's, unless `by_force`.
        """
        now_ms = time.time_ns() // 1_000_000
        await self._load()
        await self._call(lambda: self._disk.find(self._redis))
        keys = [self._key[name] for name in ("fence", "round", "owner")]

        def take_over() -> Awaitable[Any]:
            return self._once(self._redis.eval(TAKE_OVER, len(keys), *keys, now_ms, owner, int(by_force)))

        fence = int(await self._disk.written(take_over, size_bytes=0))
        if not fence:
            raise LaunchError(
                f"redis: the keys {self.prefix}* are of another run directory than this one (its id is not {owner}); give "
                "this run another Redis (network.redis_url: another server, or another database of this one)"
            )
        self.fence = fence

    async def exists(self) -> bool:
        """Whether a coordinator ever took over a run with these keys."""
        return bool(await self._call(lambda: self._redis.exists(self._key["fence"])))

    async def owner(self) -> str | None:
        """The id of the run directory; None for a run of an older version."""
        found = await self._call(lambda: self._redis.get(self._key["owner"]))
        return None if found is None else found.decode()

    async def close(self) -> None:
        """Closes the connections, when no caller waits for a script any more."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        await self._redis.aclose()

    async def shut_down_server(self) -> None:
        """Ends the server, which has everything on disk; does nothing when the server is away already."""
        try:
            async with self._access.connect(self._url, retries=0) as connection:
                await connection.shutdown(nosave=True)
        except RedisError as error:
            log.warning("redis_not_shut_down", reason=str(error))

    async def admit(self, group_id: str, *, info: Mapping[str, Any], cursor: str, admissions: int) -> None:
        """Opens a new group and moves the prompt cursor, atomically."""
        await self._run("admit", group_id, json.dumps(info), cursor, admissions)

    async def accept(self, group_id: str, *, info: Mapping[str, Any], payload: bytes, tokens: int, lost: int) -> bool:
        """Moves a group from open to queued, with its payload; False when the group was not open.

        `tokens` counts the samples' tokens, `lost` the tokens of samples received and thrown away.
        """
        return bool(await self._run("accept", group_id, json.dumps(info), payload, tokens, lost))

    async def end(
        self, group_id: str, *, was: str, term: str, row: Mapping[str, Any], tokens: int, lost: int = 0
    ) -> bool:
        """Ends a live group under a terminal term; False when the group was not in state `was`.

        `tokens` counts the samples' tokens, as counted at the acceptance; `lost` is for an open group alone.
        """
        ended = bool(await self._run("end", group_id, was, term, json.dumps(row), tokens, lost))
        if ended:
            self._remember(row)
        return ended

    async def assign(
        self, step: int, *, record: Mapping[str, Any], group_ids: Sequence[str], tokens: int
    ) -> dict[str, Any]:
        """Fixes batch `step`, with `tokens` in all; returns the record, which is the older one if the batch has a record."""
        return json.loads(await self._run("assign", step, json.dumps(record), tokens, *group_ids))

    async def commit(
        self, step: int, *, record: Mapping[str, Any], tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Moves the groups of batch `step` from assigned to trained; returns the record, the older one if there is one."""
        pairs = [part for group_id, row in rows.items() for part in (group_id, json.dumps(row))]
        recorded = json.loads(await self._run("commit", step, json.dumps(record), tokens, *pairs))
        for row in rows.values():
            self._remember(row)
        return recorded

    async def set_aside(
        self, step: int, *, digest: str, term: str, tokens: int, rows: Mapping[str, Mapping[str, Any]]
    ) -> bool:
        """Ends the groups of batch `step` under `term` and forgets the batch; False unless the batch has this digest and no
        commit."""
        pairs = [part for group_id, row in rows.items() for part in (group_id, json.dumps(row))]
        ended = bool(await self._run("set_aside", step, digest, term, tokens, *pairs))
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
        entries = await self._call(lambda: self._redis.hmget(self._key["entry"], list(group_ids)))
        found: list[bytes | None] = []
        for first in range(0, len(entries), PAYLOADS_AT_ONCE):
            answers = await self._call(partial(self._entries, entries[first : first + PAYLOADS_AT_ONCE]))
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
        states = await self._call(lambda: self._redis.hgetall(self._key["state"]))
        infos = await self._call(lambda: self._redis.hgetall(self._key["info"]))
        return {group.decode(): (state.decode(), json.loads(infos[group])) for group, state in states.items()}

    async def record(self, kind: str, step: int) -> dict[str, Any] | None:
        """The `batch` or `commit` record of a step."""
        found = await self._call(lambda: self._redis.hget(self._key[kind], str(step)))
        return None if found is None else json.loads(found)

    async def last_step(self, kind: str) -> int:
        """The largest step with a `batch` or `commit` record; -1 without a record."""
        return max((int(step) for step in await self._call(lambda: self._redis.hkeys(self._key[kind]))), default=-1)

    async def counters(self) -> dict[str, int]:
        """Every counter."""
        found = await self._call(lambda: self._redis.hgetall(self._key["counter"]))
        return {name.decode(): int(value) for name, value in found.items()}

    async def meta(self) -> dict[str, str]:
        """Cursor, admissions, run state and the like."""
        found = await self._call(lambda: self._redis.hgetall(self._key["meta"]))
        return {name.decode(): value.decode() for name, value in found.items()}

    async def set_meta(self, values: Mapping[str, str]) -> None:
        """Sets entries of `meta`."""
        await self._run("set_meta", *(part for pair in values.items() for part in pair))

    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many rows are in files already, and the oldest `limit` rows that are not."""
        before = await self._call(lambda: self._redis.hget(self._key["meta"], "rows_in_files"))
        found = await self._call(lambda: self._redis.lrange(self._key["rows"], 0, limit - 1))
        return int(before or 0), await asyncio.to_thread(lambda: [json.loads(row) for row in found])

    async def find_row(self, is_it: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """The newest row outside the files for which `is_it` is true; None when no such row is in Redis."""
        for last in itertools.count(
            -1, -ROWS_AT_ONCE
        ):  # from the end, because rows that leave meanwhile leave at the front
            before = partial(self._redis.lrange, self._key["rows"], last - ROWS_AT_ONCE + 1, last)
            found = await self._call(before)
            for row in map(json.loads, reversed(found)):
                if is_it(row):
                    return row
            if len(found) < ROWS_AT_ONCE:
                return None
        return None

    async def drop_rows(self, before: int, count: int) -> None:
        """Removes the oldest `count` rows, which are in a file; does nothing unless `before` still counts the rows in files."""
        await self._run("drop_rows", before, count)

    async def drop_records(self, before: int) -> None:
        """Forgets batches and commits of steps before `before`, so that Redis does not grow with the length of a run."""
        await self._run("drop_records", before)

    async def watch(self) -> None:
        """Waits until a call finds that Redis has lost writes, then raises Forgot."""
        await self._forgot.wait()
        raise Forgot(FORGOT)

    async def confirm(self) -> None:
        """Raises Forgot when Redis has lost writes."""
        await self._run("confirm")

    async def restore_batch(
        self, step: int, *, record: Mapping[str, Any], groups: Sequence[tuple[str, Mapping[str, Any], int]]
    ) -> None:
        """Assigns batch `step` of (group id, info, tokens), whatever Redis knew of the groups; does nothing if assigned."""
        parts = [part for group_id, info, tokens in groups for part in (group_id, json.dumps(info), tokens)]
        await self._run("restore_batch", step, json.dumps(record), *parts)

    async def rows_in_files(self) -> int:
        """Redis's count of the rows in files."""
        return int(await self._call(lambda: self._redis.hget(self._key["meta"], "rows_in_files")) or 0)

    async def rebook(self, before: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Books the rows in files after the first `before`; returns how many of these rows Redis had forgotten."""
        parts = [
            part
            for row in rows
            for part in (row["group_id"], row["term"], int(row["tokens"] or 0), int(row.get("lost_tokens") or 0))
        ]
        return int(await self._run("rebook", before, *parts))

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
        await self._run("roll_back", number, to, trained, trained_tokens, len(meta), *entries, *groups)

    async def forget(self, number: int, *, rollbacks: str) -> None:
        """Empties a Redis that does not know of rollback `number`, because all its facts are older; repair.py follows."""
        await self._run("forget", number, rollbacks)

    async def _run(self, name: str, *args: str | int | bytes) -> Any:
        """Runs one script. Scripts that are asked for while others are under way share one round trip, in their order."""
        asked = _Asked(script=self._scripts[name], args=args, answer=asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="redis-scripts")
        return await asked.answer

    async def _send(self) -> None:
        while self._asked:
            together = [self._asked.popleft()]
            size = together[0].size
            while self._asked and size + self._asked[0].size <= SENT_AT_ONCE_BYTES:
                together.append(self._asked.popleft())
                size += together[-1].size
            try:
                answers = await self._answers(together, size_bytes=size)
            except asyncio.CancelledError:
                for asked in (*together, *self._asked):
                    asked.answer.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - every caller gets the error, of any kind
                answers = [error] * len(together)
            for asked, answer in zip(together, answers, strict=True):
                self._tell(asked, answer)

    async def _answers(self, together: Sequence["_Asked"], *, size_bytes: int) -> list[Any]:
        """Answers or errors of scripts, one by one. What Redis refuses because its disk is full is sent again, when it may
        be written."""
        answers: dict[_Asked, Any] = {}

        async def send() -> None:
            left = [asked for asked in together if asked not in answers]
            given = dict(zip(left, await self._once(self._together(left)), strict=True))
            answers.update({asked: answer for asked, answer in given.items() if not _says_full(answer)})
            if len(answers) < len(together):
                raise DiskFull(f"redis: {next(filter(_says_full, given.values()))}")

        await self._disk.written(send, size_bytes=size_bytes)
        return [answers[asked] for asked in together]

    async def _together(self, together: Sequence["_Asked"]) -> list[Any]:
        """Answers or errors of scripts, one by one. A restarted Redis has forgotten the scripts, which are loaded again."""
        self._round += 1
        while True:
            guard = f"{self.fence}:{self._seen}:{self._round}"
            pipe = self._redis.pipeline(transaction=False)
            for asked in together:
                pipe.evalsha(asked.script.sha, len(self._keys), *self._keys, guard, *asked.args)
            answers = await pipe.execute(raise_on_error=False)
            if not any(isinstance(answer, NoScriptError) for answer in answers):
                return answers
            await self._load()

    async def _load(self) -> None:
        """Loads all scripts at once, so that Redis knows either all scripts of a round trip or none."""
        for script in self._scripts.values():
            await self._redis.script_load(script.script)

    def _tell(self, asked: "_Asked", answer: Any) -> None:
        if asked.answer.done():
            return  # the caller was cancelled
        if isinstance(answer, ResponseError):
            answer = self._ours(answer)
        if isinstance(answer, Exception):
            asked.answer.set_exception(answer)
            return
        writes, value = answer
        self._seen = max(self._seen, writes)
        asked.answer.set_result(value)

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to a command that writes nothing."""
        return await self._disk.answered(lambda: self._once(command()))

    async def _once(self, command: Awaitable[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        asked = task.cancelling()
        try:
            answer = await command
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise Unavailable(f"redis: {error}") from error
        except ResponseError as error:
            ours = self._ours(error)
            if ours is error:
                raise
            raise ours from error
        if (
            task.cancelling() > asked
        ):  # redis-py writes under asyncio.wait_for, which loses a cancellation (Python < 3.12)
            raise asyncio.CancelledError
        return answer

    def _ours(self, error: ResponseError) -> Exception:
        """The Sluice error behind a refusal of Redis; the refusal itself where no script of Sluice made it."""
        if "FENCED" in str(error):
            return Fenced("another coordinator has taken over this run; this one must end")
        if "FORGOT" in str(error):
            self._forgot.set()
            return Forgot(FORGOT)
        if _says_full(error):  # also in answer to a read, before which the client asks whether the connection is alive
            return DiskFull(f"redis: {error}")
        if isinstance(error, OutOfMemoryError):
            return Overloaded(f"redis: {error}; raise its maxmemory or lower coordinator.queue_max_bytes")
        return error


@dataclass(kw_only=True, slots=True, eq=False)
class _Asked:
    """A script with a waiting caller."""

    script: AsyncScript
    args: Sequence[str | int | bytes]
    answer: "asyncio.Future[Any]"

    @property
    def size(self) -> int:
        """About the bytes of the script's arguments."""
        return sum(len(arg) for arg in self.args if not isinstance(arg, int))


def _says_full(answer: Any) -> bool:
    """Whether Redis refuses to write because it cannot put writes on its disk."""
    return isinstance(answer, ResponseError) and "MISCONF" in str(answer)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its lists, which are by far its larger part, for lists of groups."""
    return {name: value for name, value in row.items() if not isinstance(value, list)}
