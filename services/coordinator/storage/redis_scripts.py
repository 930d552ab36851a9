"""The way to Redis: scripts that share round trips in their order, commands that only read, and Redis's refusals by name."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.coordinator.state.ports import Forgot
from services.coordinator.storage.lua import SCRIPTS
from services.coordinator.storage.redis_disk import RedisDisk
from sluice.errors import DiskFull, Fenced, Overloaded, Unavailable

FORGOT = (
    "redis has lost what it had confirmed (was it killed without appendfsync always, or emptied?): this coordinator ends; "
    "started again, it goes on from what is left, and the learner tells it the rest"
)

SENT_AT_ONCE_BYTES = 16 << 20
"""Limit of the scripts of one round trip together (a single script may be larger): Redis answers nobody else meanwhile."""


TRIP_S = 0.004
"""A round trip begins at the earliest so long after the former one. Chosen: a group takes seconds, and a trip costs both
processes more than the scripts that share it, so that under load scripts are better gathered than sent one by one."""


class RedisScripts:
    """The scripts of lua.py on the keys of one run.

    Methods raise Fenced, Unavailable (Redis is away), Forgot (Redis is back without its newest writes) or Overloaded
    (Redis is full). All methods wait while Redis's disk is full.
    """

    def __init__(self, redis: Redis, *, keys: Sequence[str], disk: RedisDisk) -> None:
        self._redis, self._keys, self._disk = redis, keys, disk
        self._scripts = {name: redis.register_script(text) for name, text in SCRIPTS.items()}
        self.fence = 0
        """Of the coordinator that this process is; see take_over in redis_store.py."""
        self._round = 0
        self._seen = 0
        """The largest number of writes that Redis has confirmed to this process."""
        self._asked: deque[_Asked] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._forgot = asyncio.Event()
        self._began_s = float("-inf")
        """When the last round trip began, on the event loop's clock."""

    async def forgotten(self) -> None:
        """Waits until a call finds that Redis has lost writes, then raises Forgot."""
        await self._forgot.wait()
        raise Forgot(FORGOT)

    async def close(self) -> None:
        """Stops sending, when no caller waits for a script any more."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def run(self, name: str, *args: str | int | bytes) -> Any:
        """Runs one script. Scripts that are asked for while others are under way share one round trip, in their order."""
        asked = _Asked(script=self._scripts[name], args=args, answer=asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="redis-scripts")
        return await asked.answer

    async def _send(self) -> None:
        while self._asked:
            together: list[_Asked] = []
            try:
                await self._gather()
                size = self._take(together)
                answers = await self._answers(together, size_bytes=size)
            except asyncio.CancelledError:
                for asked in (*together, *self._asked):
                    asked.answer.cancel()
                raise
            except Exception as error:  # noqa: BLE001 - every caller gets the error, of any kind
                answers = [error] * len(together)
            for asked, answer in zip(together, answers, strict=True):
                self._tell(asked, answer)

    async def _gather(self) -> None:
        """Lets further scripts join the next round trip where trips follow one another closely."""
        now_s = asyncio.get_running_loop().time()
        if (early_s := self._began_s + TRIP_S - now_s) > 0:
            await asyncio.sleep(early_s)
        self._began_s = now_s + max(early_s, 0.0)

    def _take(self, together: list["_Asked"]) -> int:
        """Moves the scripts of one round trip to `together`; returns about their bytes."""
        together.append(self._asked.popleft())
        size = together[0].size
        while self._asked and size + self._asked[0].size <= SENT_AT_ONCE_BYTES:
            together.append(self._asked.popleft())
            size += together[-1].size
        return size

    async def _answers(self, together: Sequence["_Asked"], *, size_bytes: int) -> list[Any]:
        """Answers or errors of scripts, one by one. What Redis refuses because its disk is full is sent again, when it may
        be written."""
        answers: dict[_Asked, Any] = {}

        async def send() -> None:
            left = [asked for asked in together if asked not in answers]
            given = dict(zip(left, await self.once(self._together(left)), strict=True))
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
            await self.load()

    async def load(self) -> None:
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

    async def call(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """The answer to a command that writes nothing."""
        return await self._disk.answered(lambda: self.once(command()))

    async def once(self, command: Awaitable[Any]) -> Any:
        """The answer to one command, with the client's errors by Sluice's names."""
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
