"""`sluice up` on one machine: Redis, coordinator, rewards, rollouts, learner; restarts what dies; ends cleanly.

 who waits            for what                       unblocked by
 a service's keeper   the exit of its process        the exit, or the end of the run
 the watcher          the run's final state          the coordinator's status, or a service that cannot be kept alive
A service that dies is started again, up to `launch.max_restarts` times; one that dies before it was ever registered, or
ends with code 2 (it was started wrongly), ends the run at once with the end of its log.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from sluice.cli.view import View
from sluice.client import AsyncClient
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import LaunchError, SluiceError
from sluice.launch.commands import Command, coordinator_command, service_command
from sluice.launch.embedded_redis import EmbeddedRedis, start_redis
from sluice.launch.processes import Child, read_ready, start
from sluice.v1 import coordinator_pb2 as pb

STATUS_INTERVAL_S = 1.0
LEARNER_EXPORT_S = 120.0
"""How long the learner may take to export the model after the run has ended."""
FINAL = {
    pb.RUN_STATE_FINISHED: 0,
    pb.RUN_STATE_STOPPED: 0,
    pb.RUN_STATE_FAILED: 1,
    pb.RUN_STATE_STARVED: 3,
}
EXIT_BAD_USAGE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    status: pb.GetStatusResponse | None
    message: str
    wall_s: float


@dataclass(kw_only=True, slots=True)
class LocalRun:
    """One run on this machine."""

    config: Config
    run_dir: Path
    view: View
    check_only: bool = False
    """Start only what the check of data, tokenizer and reward needs, and end after it."""
    _redis: EmbeddedRedis | None = None
    _client: AsyncClient | None = None
    _coordinator: str = ""
    _children: dict[str, Child] = field(default_factory=dict)
    _keepers: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    """Services that were registered at least once."""
    _status: pb.GetStatusResponse | None = None
    _ending: bool = False
    _failed: asyncio.Future[None] | None = None

    async def run(self) -> Outcome:
        """Starts everything, watches until the run has ended, stops everything."""
        started = time.monotonic()
        self._failed = asyncio.get_running_loop().create_future()
        message, code = "", 1
        try:
            await self._start()
            code, message = await self._until_over()
        except SluiceError as error:
            code, message = (EXIT_BAD_USAGE if isinstance(error, ValueError) else 1), str(error)
        finally:
            await asyncio.shield(self._stop())
        return Outcome(exit_code=code, status=self._status, message=message, wall_s=time.monotonic() - started)

    # --- start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "config.yaml").write_text(dump_config(self.config))
        redis_url = self.config.network.redis_url
        if redis_url is None:
            self._redis = await start_redis(self.run_dir / "redis", log_path=self._log("redis"))
            self._keep_redis()
            redis_url = self._redis.url
        await self._start_coordinator(redis_url)
        launch = self.config.launch
        wanted = {"reward": launch.reward_replicas, "rollout": launch.rollout_replicas, "learner": 1}
        for role, replicas in {"reward": 1}.items() if self.check_only else wanted.items():
            for index in range(replicas):
                self._keep(service_command(self.config, role, index=index, coordinator=self._coordinator))

    async def _start_coordinator(self, redis_url: str) -> None:
        read_fd, write_fd = os.pipe()
        port = self.config.network.coordinator_port
        first = coordinator_command(
            self.config,
            run_dir=self.run_dir,
            redis_url=redis_url,
            port=port,
            ready_fd=write_fd,
            check_only=self.check_only,
        )
        child = await start(
            first.name, first.argv, log_path=self._log(first.name), environ=first.environ, pass_fds=[write_fd]
        )
        self._children[first.name] = child
        os.close(write_fd)
        port = int(await read_ready(read_fd, child, timeout_s=self.config.launch.ready_timeout_s))
        self._coordinator = f"{self.config.network.advertise}:{port}"
        self._client = AsyncClient(self._coordinator)
        self._seen.add(first.name)
        again = coordinator_command(self.config, run_dir=self.run_dir, redis_url=redis_url, port=port, ready_fd=None)
        self._keep(again, running=child)

    def _keep(self, command: Command, *, running: Child | None = None) -> None:
        task = asyncio.create_task(self._keep_alive(command, running), name=f"keep-{command.name}")
        self._keepers[command.name] = task
        task.add_done_callback(self._keeper_ended)

    def _keeper_ended(self, task: asyncio.Task[None]) -> None:
        """A keeper that raised ends the run."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _keep_alive(self, command: Command, running: Child | None) -> None:
        """Starts and restarts one service until the run ends."""
        restarts = 0
        while not self._ending:
            child = running or await start(
                command.name, command.argv, log_path=self._log(command.name), environ=command.environ
            )
            running, self._children[command.name] = None, child
            code = await child.process.wait()
            if self._ending or (code == 0 and command.name == "learner"):
                return
            self._judge_exit(command.name, child, code, restarts)
            restarts += 1
            self.view.message(
                f"{command.name} ended with {_how(code)}; restart {restarts} of {self.config.launch.max_restarts}"
            )

    def _judge_exit(self, name: str, child: Child, code: int, restarts: int) -> None:
        """Raises LaunchError when a service must not be started again."""
        limit = self.config.launch.max_restarts
        if name not in self._seen:
            why = "while starting"
        elif code == EXIT_BAD_USAGE:
            why = "because it was started wrongly"
        elif restarts >= limit:
            why = f"once more after {limit} restarts (launch.max_restarts)"
        else:
            return
        raise LaunchError(f"{name} ended with {_how(code)} {why}; {child.log_path} ends:\n{child.log_tail()}")

    def _keep_redis(self) -> None:
        async def keep() -> None:
            restarts = 0
            while not self._ending:
                assert self._redis is not None
                code = await self._redis.child.process.wait()
                if self._ending:
                    return
                self._judge_exit("redis", self._redis.child, code, restarts)
                restarts += 1
                self.view.message(
                    f"redis ended with {_how(code)}; restart {restarts} of {self.config.launch.max_restarts}"
                )
                self._redis = await start_redis(
                    self.run_dir / "redis", log_path=self._log("redis"), socket_dir=self._redis.socket_dir
                )

        self._seen.add("redis")
        task = asyncio.create_task(keep(), name="keep-redis")
        self._keepers["redis"] = task
        task.add_done_callback(self._keeper_ended)

    # --- watch ---------------------------------------------------------------------------------------------------

    async def _until_over(self) -> tuple[int, str]:
        """The exit code and the reason; a signal stops the run in an orderly way first."""
        assert self._failed is not None
        interrupted = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, interrupted.set)
        watching = asyncio.create_task(self._watch_status(), name="status")
        events = asyncio.create_task(self._watch_events(), name="events")
        stopping = asyncio.create_task(interrupted.wait(), name="interrupt")
        try:
            await asyncio.wait([watching, stopping, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                await self._failed
            if watching.done():
                return watching.result()
            self.view.message("interrupted: stopping (again to stop at once)")
            interrupted.clear()
            return await self._stop_in_order(watching, interrupted)
        finally:
            for task in (watching, events, stopping):
                task.cancel()
            await asyncio.gather(watching, events, stopping, return_exceptions=True)
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(signum)

    async def _stop_in_order(self, watching: asyncio.Task[tuple[int, str]], again: asyncio.Event) -> tuple[int, str]:
        """Asks the coordinator to stop and waits for the final state, the grace time or a second signal."""
        assert self._client is not None
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._client.stop(reason="interrupted")
        second = asyncio.create_task(again.wait())
        await asyncio.wait([watching, second], timeout=self.config.launch.grace_s, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        return 130, "interrupted"

    async def _watch_status(self) -> tuple[int, str]:
        """Feeds the view once a second; returns when the run is over."""
        assert self._client is not None
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # the coordinator may be restarting: its keeper judges that
                self._status = await self._client.status()
                self._seen |= {service.service_id for service in self._status.services}
                self.view.update(self._status)
                if self._status.state in FINAL:
                    await self._learner_leaves()
                    self._status = await self._client.status()
                    return FINAL[self._status.state], self._status.reason
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _learner_leaves(self) -> None:
        """The learner exports the model when it hears of the end; then it leaves by itself."""
        keeper = self._keepers.get("learner")
        if keeper is not None:
            await asyncio.wait([keeper], timeout=LEARNER_EXPORT_S)

    async def _watch_events(self) -> None:
        """Feeds the view and fulfils `scale`; follows the coordinator over its restarts."""
        assert self._client is not None
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for event in self._client.watch(launcher=True):
                    self.view.event(event)
                    if event.kind == "scale":
                        await self._scale(event.labels["role"], int(event.values["replicas"]))
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _scale(self, role: str, replicas: int) -> None:
        """Starts or ends replicas of a role until there are `replicas`."""
        running = {name for name, task in self._keepers.items() if name.startswith(f"{role}-") and not task.done()}
        for index in range(replicas):
            command = service_command(self.config, role, index=index, coordinator=self._coordinator)
            if command.name not in running:
                self._keep(command)
        for name in sorted(running):
            if int(name.removeprefix(f"{role}-")) >= replicas:
                self._keepers.pop(name).cancel()
                await self._children.pop(name).stop(grace_s=self.config.launch.grace_s)

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Ends every process: services first, then the coordinator, then Redis."""
        self._ending = True
        coordinator = self._children.pop("coordinator", None)
        grace = self.config.launch.grace_s
        await asyncio.gather(*(child.stop(grace_s=grace) for child in self._children.values()))
        if self._client is not None:
            await self._client.close()
        if coordinator is not None:
            await coordinator.stop(grace_s=grace)
        if self._redis is not None:
            await self._redis.stop()
        for task in self._keepers.values():
            task.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    def _log(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"


def new_run_dir(config: Config) -> Path:
    """RUNS/<name>-<time>-<4 hex digits>."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path(config.run.dir) / f"{config.run.name}-{stamp}-{secrets.token_hex(2)}"


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
