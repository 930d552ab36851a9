"""An environment process: `python -m services.reward.environments.environment_process PARENT_PID LIMITS`, questions on stdin.

Holds the objects of many episodes of one environment. A question is a frame with an `id` and `do`: `load` (once), `open`,
`step`, `close`; the answer carries the `id` again, in the order in which answers come. Async methods run side by side on the
process's event loop, so they must not block; plain methods run in threads, at most MOST_THREADS at once, so a slow one holds
no other. An error of the user's code is the answer `error`. The service limits every call from outside and kills the process
when a call takes longer (environment_handle.py).
"""

import asyncio
import ctypes
import inspect
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, Final

from services.reward.environments.answers import frame_of, message_in, opening_of, reply_of, row_in
from services.reward.environments.loading import Loaded
from services.reward.sandbox.entering import enter
from services.reward.sandbox.frames import Frame, read, write
from services.reward.sandbox.loading import describe
from sluice.environments import Message, Reply
from sluice.limits import NAME_CHARACTERS

MOST_THREADS: Final = 64
_VERSION = re.compile(rf"[!-~]{{1,{NAME_CHARACTERS}}}")
_STACK_BYTES = 4 << 20
_M_ARENA_MAX = -8  # <malloc.h>


def main() -> None:
    """Serves questions until the input ends."""
    jobs, replies = enter(int(sys.argv[1]), json.loads(sys.argv[2]))
    _spare_address_space()
    try:
        asyncio.run(_Worker(replies).serve(jobs))
    finally:
        os._exit(0)  # a thread of the user's may never end


def _spare_address_space() -> None:
    """Stacks and heaps of threads count against the limit of memory although nothing is in them."""
    threading.stack_size(_STACK_BYTES)
    with suppress(AttributeError, OSError):  # a C library other than glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


class _Worker:
    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._loaded: Loaded | None = None
        self._objects: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(MOST_THREADS)

    async def serve(self, jobs: BinaryIO) -> None:
        loop, frames = asyncio.get_running_loop(), asyncio.Queue[Frame | None]()

        def take() -> None:
            while (frame := read(jobs)) is not None:
                loop.call_soon_threadsafe(frames.put_nowait, frame)
            loop.call_soon_threadsafe(frames.put_nowait, None)

        threading.Thread(target=take, daemon=True).start()
        running: set[asyncio.Task[None]] = set()
        while (frame := await frames.get()) is not None:
            task = asyncio.create_task(self._answer(frame))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _answer(self, frame: Frame) -> None:
        try:
            answer = await self._do(frame)
        except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the reason is the answer
            answer = {"error": f"{frame['do']}: {describe(error)}{self._place(error)}"}
        write(self._replies, {"id": frame["id"], **answer})

    def _place(self, error: Exception) -> str:
        """The last line of the environment's own file that an error came through; nothing for an error of no such line."""
        file = "" if self._loaded is None else self._loaded.file
        through = [one for one in traceback.extract_tb(error.__traceback__) if file and one.filename == file]
        return f" ({os.path.basename(file)}:{through[-1].lineno} in {through[-1].name})" if through else ""

    async def _do(self, frame: Frame) -> Frame:
        if frame["do"] == "load":
            return await self._load(frame)
        assert self._loaded is not None
        episode = frame["episode"]
        if frame["do"] == "open":
            made = self._objects[episode] = await self._call(self._loaded.new)
            opening = opening_of(await self._call(made.open, row_in(frame["row"])), tools=getattr(made, "tools", ()))
            return {"opening": frame_of(opening)}
        if frame["do"] == "step":
            message = message_in(frame["message"])
            return {"reply": frame_of(await self._step(self._objects[episode], message, last=frame["last"]))}
        await self._close(self._objects.pop(episode, None))
        return {"closed": True}

    async def _step(self, made: Any, message: Message, *, last: bool) -> Reply:
        """The checked reply; of an episode that its last turn leaves unfinished with the score that the object gives it."""
        assert self._loaded is not None
        given = await self._call(made.step, message)
        if last and not getattr(given, "done", False) and callable(getattr(made, "unfinished", None)):
            score = await self._call(made.unfinished)
            given = Reply(done=True, score=score)
        return reply_of(given, to=message, scores=self._loaded.scores, last=last)

    async def _load(self, frame: Frame) -> Frame:
        """Makes one object on trial, so that settings that do not serve are found before the first episode."""
        loaded = await self._call(Loaded, frame["environment"], frame["settings"])
        trial = await self._call(loaded.new)
        await self._close(trial)
        self._loaded = loaded
        # An object that stands for other code has a version of its own.
        version = str(getattr(trial, "VERSION", loaded.version))
        if not _VERSION.fullmatch(version):
            raise ValueError(
                f"VERSION: must be 1 to {NAME_CHARACTERS} ASCII characters without blanks, got {version!r:.80}"
            )
        return {"ready": version, "scores": loaded.scores}

    async def _close(self, made: Any) -> None:
        close = getattr(made, "close", None)
        if close is not None:
            await self._call(close)

    async def _call(self, method: Callable[..., Any], *of: Any) -> Any:
        """The method's result: on this loop for a coroutine function, else in a thread."""
        if inspect.iscoroutinefunction(method):
            return await method(*of)
        raised, result = await asyncio.get_running_loop().run_in_executor(self._threads, _caught, method, of)
        if raised is not None:
            raise raised
        return await result if inspect.isawaitable(result) else result


def _caught(method: Callable[..., Any], of: tuple[Any, ...]) -> tuple[Exception | None, Any]:
    """The error or the result: a future cannot carry every error (StopIteration)."""
    try:
        return None, method(*of)
    except Exception as error:  # noqa: BLE001 - as above
        if isinstance(error, StopIteration):
            return RuntimeError(repr(error)).with_traceback(error.__traceback__), None
        return error, None


if __name__ == "__main__":
    main()
