"""The processes beside the launcher, whatever places the services: the run's own Redis and the coordinator.

 who waits             for what                               unblocked by
 `start`               Redis and the coordinator to answer    their answers; launch.ready_timeout_s
 both, on a full disk  room                                   whoever frees space
The keeper starts each again when it dies, and probes (frozen.py) find one that lives and does not answer.
"""

import asyncio
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sluice.addresses import joined
from sluice.client import AsyncClient
from sluice.config.schema import Config
from sluice.errors import DiskFull, LaunchError
from sluice.launch.commands import Command, coordinator_command
from sluice.launch.embedded_redis import ROOM_BYTES, EmbeddedRedis, new_password, start_redis
from sluice.launch.frozen import FrozenWatch
from sluice.launch.keeper import Keeper
from sluice.launch.processes import Child, read_ready, start
from sluice.rpc.credentials import Credentials
from sluice.run_dir.durable import write_synced
from sluice.run_dir.full_disk import DiskWaits, NoRoom, prove_room
from sluice.run_dir.naming import ADDRESS_FILE


@dataclass(kw_only=True, slots=True)
class ControlPlane:
    """Redis and coordinator of one run, from `start` on."""

    config: Config
    """With this machine's own addresses."""
    run_dir: Path
    lock_fd: int | None
    """The lock of the run directory, which Redis keeps for as long as it lives."""
    operator: Credentials = field(repr=False)
    keeper: Keeper
    frozen: FrozenWatch
    disk: DiskWaits
    at_once: asyncio.Event
    """Set when nothing is to be waited for any more."""
    check_only: bool
    evaluate_only: bool
    address: str = field(default="", init=False)
    """host:port of the coordinator."""
    _client: AsyncClient | None = field(default=None, init=False, repr=False)
    _redis: EmbeddedRedis | None = field(default=None, init=False, repr=False)
    password: str = field(default="", init=False, repr=False)
    """Of the run's own Redis."""

    @property
    def client(self) -> AsyncClient:
        """Calls the coordinator; without retries: the launcher and its keeper must notice a silent coordinator themselves."""
        assert self._client is not None, "start comes first"
        return self._client

    @property
    def is_up(self) -> bool:
        """Whether the coordinator has answered once."""
        return self._client is not None

    async def start(self) -> None:
        """Returns when the coordinator answers. Raises LaunchError or ConfigError in the coordinator's words."""
        redis_url = self.config.network.redis_url or await self.start_redis()
        child, port = await self.disk.until(lambda: self._first_coordinator(redis_url))
        self.address = joined(self.config.network.advertise, port)
        self._client = AsyncClient(self.address, credentials=self.operator, retry_reads=False)
        self.keeper.known.add(child.name)
        self.keeper.keep(self._command(redis_url, port=port, ready_fd=None), running=child)
        probe = self.frozen.probe(lambda: self.keeper.child(child.name), self._client.answers, ready=child)
        self.keeper.supervise("coordinator-watch", probe)
        await self.disk.write(write_synced, self.run_dir / ADDRESS_FILE, [self.address.encode()])

    async def close(self) -> None:
        """Ends Redis; the keeper has ended the coordinator."""
        if self._client is not None:
            await self._client.close()
        if self._redis is not None:
            await self._redis.stop()

    async def start_redis(self) -> str:
        """Starts the run's own Redis and has the server kept alive on one socket; returns the server's URL."""
        directory = self.run_dir / "redis"
        self.password = new_password()
        starting = partial(
            start_redis, directory, log_path=self._log("redis"), lock_fd=self.lock_fd, password=self.password
        )

        async def keep(redis: EmbeddedRedis) -> None:
            while True:
                code = await redis.child.wait()
                await self.keeper.died(redis.child, code)
                again = partial(starting, socket_dir=redis.socket_dir)
                self._redis = redis = await self.disk.until(again, folder=directory)

        self._redis = await self.disk.until(starting, folder=directory)
        self.keeper.known.add("redis")
        self.keeper.supervise("redis", keep(self._redis))
        self.keeper.supervise("redis-watch", self._watch_redis(self._redis))
        return self._redis.url

    async def _watch_redis(self, redis: EmbeddedRedis) -> None:
        """Probes the server until cancelled; a restarted server has the same socket."""

        def running() -> Child | None:
            assert self._redis is not None
            return self._redis.child if self._redis.child.alive else None

        await self.frozen.probe(running, redis.answers, ready=redis.child)

    def _command(self, redis_url: str, *, port: int, ready_fd: int | None) -> Command:
        return coordinator_command(
            self.config,
            run_dir=self.run_dir,
            redis_url=redis_url,
            redis_password=self.password,
            port=port,
            ready_fd=ready_fd,
            check_only=self.check_only,
            evaluate_only=self.evaluate_only,
        )

    async def _first_coordinator(self, redis_url: str) -> tuple[Child, int]:
        """Starts the coordinator; returns it with its port when it answers. Raises DiskFull when a full disk has ended it."""
        read_fd, write_fd = os.pipe()
        command = self._command(redis_url, port=self.config.network.coordinator_port, ready_fd=write_fd)
        try:
            child = await start(command, log_path=self._log(command.name), pass_fds=[write_fd])
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            return child, int(await read_ready(read_fd, child, timeout_s=self.config.launch.ready_timeout_s))
        except BaseException as error:
            await child.stop(grace_s=self.config.launch.grace_s, at_once=self.at_once)
            if isinstance(error, LaunchError):
                await self._raise_if_full()
            raise

    async def _raise_if_full(self) -> None:
        try:
            await asyncio.to_thread(prove_room, self.run_dir, ROOM_BYTES)
        except NoRoom as full:
            raise DiskFull(str(full)) from full

    def _log(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"
