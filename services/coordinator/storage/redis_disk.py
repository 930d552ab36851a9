"""The disk behind Redis, and what becomes of commands while that disk is full: they wait.

A Redis that syncs at every write ends when a write finds no room, one that syncs later refuses writes (MISCONF) and answers
reads. A server on this machine is asked to write only where its folder has room; for others only their refusal shows.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import redis.asyncio as aioredis

from sluice.errors import Unavailable
from sluice.run_dir.full_disk import DiskWaits, check_room, free_bytes, prove_room

T = TypeVar("T")

LOOK_AGAIN_S = 2.0
"""After how long without an answer the disk is looked at."""

SPARE_BYTES = 1 << 20
"""What is left free beside a write. Chosen: above what other writers of a run put on the disk between a look and a write."""

ROOMY_BYTES, ROOMY_S = 1 << 30, 0.25
"""A disk with so much room is not looked at again for so long. Chosen: nobody writes 4 GiB/s; a look costs a thread's turn."""

WRITTEN_A_BYTE = 2
"""Bytes of the append-only file for a byte of a script's arguments. Measured: 1.1 at 2 kB a payload, less for larger ones."""


class RedisDisk:
    """The disk of one server."""

    def __init__(self, *, url: str, disk: DiskWaits) -> None:
        self._is_here, self._disk = url.startswith("unix:"), disk
        self._folder: Path | None = None
        """The server's folder, of a server on this machine."""
        self._name = Path("Redis")
        self._roomy_until_s = float("-inf")
        """Until when, on the monotonic clock, a disk with much room is believed to have some."""

    async def find(self, connection: aioredis.Redis) -> None:
        """Asks the server for its folder."""
        named = (await connection.config_get("dir")).get("dir", "")
        self._name = Path(f"Redis:{named}")
        if self._is_here and named and await asyncio.to_thread(Path(named).is_dir):
            self._folder = self._name = Path(named)

    async def written(self, send: Callable[[], Awaitable[T]], *, size_bytes: int) -> T:
        """The answer to `send`, which writes so much, once there is room. Raises Unavailable when Redis is away for another
        reason."""
        needed, in_doubt = WRITTEN_A_BYTE * size_bytes + SPARE_BYTES, False

        async def attempt() -> T:
            nonlocal in_doubt
            if self._folder is None:
                return await send()
            if in_doubt:
                await asyncio.to_thread(prove_room, self._folder, needed)
            elif time.monotonic() >= self._roomy_until_s and await asyncio.to_thread(_is_roomy, self._folder, needed):
                self._roomy_until_s = time.monotonic() + ROOMY_S
            in_doubt = True
            return await self._watched(send, self._folder, needed)

        return await self.answered(attempt)

    async def _watched(self, send: Callable[[], Awaitable[T]], folder: Path, needed: int) -> T:
        """The answer to `send`. Raises NoRoom when Redis does not answer and there is no room: a quota shows only then, and a
        Redis that ends at every write would get the write again and again."""
        sending = asyncio.ensure_future(send())
        try:
            while not (await asyncio.wait([sending], timeout=LOOK_AGAIN_S))[0]:
                await asyncio.to_thread(prove_room, folder, needed)
            return sending.result()
        except Unavailable:
            await asyncio.to_thread(prove_room, folder, needed)
            raise
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to `ask`, which is repeated while Redis refuses it for want of room."""
        return await self._disk.until(ask, folder=self._name)


def _is_roomy(folder: Path, needed: int) -> bool:
    """Whether there is much more room than `needed`. Raises NoRoom where there is less."""
    check_room(folder, needed)
    return free_bytes(folder) - needed >= ROOMY_BYTES
