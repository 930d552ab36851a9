"""`sluice up`: Redis and coordinator here, rewards, rollouts and learner where an engine places each; restarts what dies;
ends cleanly.

 who waits     for what                  unblocked by
 the watcher   the run's final state     the coordinator's status, a service that cannot be kept alive, a signal
keeper.py keeps services alive, frozen.py finds frozen processes. A run directory that is started again continues its run.
"""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sluice.addresses import joined
from sluice.client import AsyncClient
from sluice.clock import SystemClock
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import DiskFull, LaunchError, SluiceError
from sluice.launch import deployments
from sluice.launch.autoscale import autoscaler_of
from sluice.launch.commands import (
    Command,
    coordinator_command,
    credentials_folder,
    learner_node_line,
    service_command,
)
from sluice.launch.embedded_redis import ROOM_BYTES, EmbeddedRedis, new_password, start_redis
from sluice.launch.engines.checked import CheckedEngine
from sluice.launch.engines.local import LocalEngine
from sluice.launch.engines.port import Engine
from sluice.launch.export_wait import ExportWait
from sluice.launch.frozen import FrozenWatch
from sluice.launch.gpus import Gpus, shared_out
from sluice.launch.interrupts import Interrupts
from sluice.launch.keeper import Keeper
from sluice.launch.logs import keep_small
from sluice.launch.own_network import settled
from sluice.launch.processes import Child, read_ready, start
from sluice.launch.run_lock import lock_run_dir
from sluice.launch.view import View
from sluice.process import exit_codes
from sluice.rpc.access import Role
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials, load_credentials
from sluice.run_dir.durable import make_folder, write_synced
from sluice.run_dir.full_disk import DiskWaits, NoRoom, prove_room
from sluice.run_dir.naming import ADDRESS_FILE
from sluice.v1 import coordinator_pb2 as pb

STATUS_INTERVAL_S = 1.0
ROLLOUT, READY = pb.SERVICE_ROLE_ROLLOUT, pb.SERVICE_STATE_READY
FINAL = {
    pb.RUN_STATE_FINISHED: 0,
    pb.RUN_STATE_STOPPED: 0,
    pb.RUN_STATE_FAILED: 1,
    pb.RUN_STATE_STARVED: 3,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended."""

    exit_code: int
    status: pb.GetStatusResponse | None
    message: str
    wall_s: float


class Run:
    """One run, whose services `engine` places (default: this machine).

    `check_only` starts only the services that check data, tokenizer and reward, then ends;
    `evaluate_only` no learner: the model folder's weights are evaluated on every evaluation set.

    The coordinator's address goes to `ready_fd` when the coordinator answers, unless the run is finished already.
    """

    def __init__(
        self,
        *,
        config: Config,
        run_dir: Path,
        view: View,
        check_only: bool = False,
        evaluate_only: bool = False,
        ready_fd: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        self._config, self._run_dir, self._view, self._check_only = config, run_dir, view, check_only
        self._own = config
        """The configuration of the processes beside the launcher, with this machine's addresses once these are known."""
        self._evaluate_only = evaluate_only
        self._ready_fd = ready_fd
        self._engine = engine or LocalEngine()
        self._autoscaler = autoscaler_of(config.launch)
        self._disk = DiskWaits(
            clock=SystemClock(), tell=lambda event, line: view.message(f"{event}: {line}"), folder=run_dir
        )
        if self._engine.name != LocalEngine.name:
            self._engine = CheckedEngine(self._engine, model_path=config.model.path, disk=self._disk)
        self._interrupts = Interrupts()
        self._lock_fd: int | None = None
        self._redis: EmbeddedRedis | None = None
        self._redis_password = ""
        self._client: AsyncClient | None = None
        self._coordinator = ""
        self._operator: Credentials = NO_CREDENTIALS
        self._status: pb.GetStatusResponse | None = None

    async def run(self) -> Outcome:
        """Starts everything, watches until the run has ended, stops everything."""
        started = time.monotonic()
        self._keeper = Keeper(
            launch=self._config.launch,
            log_dir=self._run_dir / "logs",
            say=self._view.message,
            is_over=self._is_over,
            registered=self._registered,
            disk=self._disk,
            engine=self._engine,
        )
        self._frozen = FrozenWatch(launch=self._config.launch, keeper=self._keeper, clock=SystemClock())
        message, code = "", 1
        with self._interrupts:
            try:
                code, message = await self._start_and_watch()
            except SluiceError as error:
                code, message = (exit_codes.BAD_USAGE if isinstance(error, ValueError) else 1), str(error)
            finally:
                await asyncio.shield(self._stop())
        return Outcome(exit_code=code, status=self._status, message=message, wall_s=time.monotonic() - started)

    async def _start_and_watch(self) -> tuple[int, str]:
        """The exit code and the reason. A signal, or a service that cannot be kept alive, ends the run in any phase."""
        failed = self._keeper.failed
        starting = asyncio.create_task(self._start(), name="start")
        interrupted = asyncio.create_task(self._interrupts.first.wait(), name="interrupt")
        try:
            await asyncio.wait([starting, interrupted, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
            if not starting.done():
                return exit_codes.INTERRUPTED, "interrupted"
            if starting.result():
                return await self._until_over(interrupted)
            return 0, f"{self._run_dir} is finished; raise run.total_steps to train on, or give another --run-dir"
        finally:
            for task in (starting, interrupted):
                task.cancel()
            await asyncio.gather(starting, interrupted, return_exceptions=True)

    # --- start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Starts Redis, the coordinator and the services; returns False without services when the run is finished already."""
        load_credentials(credentials_folder(self._config, Role.OPERATOR), role=Role.OPERATOR)  # or nothing is made
        await self._disk.write(make_folder, self._run_dir)
        self._lock_fd = await self._disk.until(lambda: lock_run_dir(self._run_dir))
        small = keep_small(self._run_dir / "logs", most_bytes=self._config.run.file_max_bytes, clock=SystemClock())
        self._keeper.supervise("logs", small)
        await self._engine.open(run_dir=self._run_dir, node_timeout_s=self._config.launch.node_timeout_s)
        await self._share_gpus()
        await self._settle_network()
        await self._disk.write(write_synced, self._run_dir / "config.yaml", [dump_config(self._config).encode()])
        redis_url = self._config.network.redis_url
        if redis_url is None:
            redis_url = await self._start_redis()
        await self._start_coordinator(redis_url)
        if await self._is_finished():
            return False
        if self._ready_fd is not None:
            os.write(self._ready_fd, self._coordinator.encode())
            os.close(self._ready_fd)
        launch, elsewhere = self._config.launch, deployments.owner()
        # A check needs one reward service. Without replicas here, the check asks the service that will grade the run.
        wanted = {"reward": min(1, launch.reward_replicas) if self._check_only else launch.reward_replicas}
        wanted |= {} if self._check_only else {"rollout": launch.rollouts}
        wanted |= {} if self._check_only or self._evaluate_only else {"learner": 1}
        for role, replicas in wanted.items():
            deployed = bool(elsewhere) and role != "learner"
            if deployed or not replicas:
                why = f"{elsewhere}-{role} is a Deployment" if deployed else f"launch.{role}_replicas is 0"
                self._view.message(
                    f"{why}: waiting {launch.ready_timeout_s:.0f} s for a {role} to register with {self._coordinator}"
                )
            for index in range(0 if deployed else replicas):
                if role == "learner" and self._gpus.sharing:
                    self._keeper.supervise("learner-after-rollouts", self._learner_after(self._gpus.sharing))
                else:
                    self._keeper.keep(self._service(role, index))
        by_hand = range(1, launch.learner_nnodes if "learner" in wanted and launch.engine == "local" else 1)
        for node_rank in by_hand:
            line = learner_node_line(self._config, node_rank=node_rank, run_id=self._run_dir.name)
            self._view.message(
                f"the learner waits {launch.ready_timeout_s:.0f} s for its machine {node_rank}: run there"
            )
            self._view.message(f"  {line}")
        return True

    async def _share_gpus(self) -> None:
        """Puts what the GPUs decide into the recipe, and says who gets which. Raises ConfigError where they do not suffice."""
        learner = not self._check_only and not self._evaluate_only
        out = await shared_out(
            self._config, self._engine, learner=learner, rollouts=not self._check_only and not deployments.owner()
        )
        self._config, self._gpus = out.config, Gpus(out)
        for line in () if self._check_only else out.lines:
            self._view.message(line)

    async def _learner_after(self, rollouts: frozenset[str]) -> None:
        """Keeps the learner once the rollouts on its GPUs have registered: until then they measure and take their memory."""
        deadline_s = time.monotonic() + self._config.launch.ready_timeout_s
        while rollouts - self._keeper.known and time.monotonic() < deadline_s:
            await asyncio.sleep(STATUS_INTERVAL_S)
            self._keeper.known |= await self._registered()
        self._keeper.keep(self._service("learner", 0))

    async def _settle_network(self) -> None:
        """Finds this machine's addresses and the run's credentials, before anything listens."""
        found = await self._disk.write(settled, self._config, run_dir=self._run_dir, address=self._engine.address)
        self._config, self._own = found.config, found.own
        if found.said:
            self._view.message(found.said)
        self._operator = load_credentials(credentials_folder(self._own, Role.OPERATOR), role=Role.OPERATOR)
        self._operator.check_listens(self._own.network.bind)

    def _service(self, role: str, index: int) -> Command:
        """The command of a service. Raises LaunchError for a rollout that finds no free GPU."""
        run_id, name = self._run_dir.name, "learner" if role == "learner" else f"{role}-{index}"
        return service_command(
            self._config,
            role,
            index=index,
            coordinator=self._coordinator,
            run_id=run_id,
            evaluate_only=self._evaluate_only,
            gpus=self._gpus.share(role, name),
        )

    async def _start_redis(self) -> str:
        """Starts the run's own Redis and has the server kept alive on one socket; returns the server's URL."""
        directory = self._run_dir / "redis"
        password = self._redis_password = new_password()
        starting = partial(
            start_redis, directory, log_path=self._log("redis"), lock_fd=self._lock_fd, password=password
        )

        async def keep(redis: EmbeddedRedis) -> None:
            while True:
                code = await redis.child.process.wait()
                await self._keeper.died(redis.child, code)
                again = partial(starting, socket_dir=redis.socket_dir)
                self._redis = redis = await self._disk.until(again, folder=directory)

        self._redis = await self._disk.until(starting, folder=directory)
        self._keeper.known.add("redis")
        self._keeper.supervise("redis", keep(self._redis))
        self._keeper.supervise("redis-watch", self._watch_redis(self._redis))
        return self._redis.url

    async def _start_coordinator(self, redis_url: str) -> None:
        child, port = await self._disk.until(lambda: self._first_coordinator(redis_url))
        self._coordinator = joined(self._own.network.advertise, port)
        await self._disk.write(write_synced, self._run_dir / ADDRESS_FILE, [self._coordinator.encode()])
        # No retries: this launcher and its keeper must notice a silent coordinator themselves.
        self._client = AsyncClient(self._coordinator, credentials=self._operator, retry_reads=False)
        self._keeper.known.add(child.name)
        again = coordinator_command(
            self._own,
            run_dir=self._run_dir,
            redis_url=redis_url,
            redis_password=self._redis_password,
            port=port,
            ready_fd=None,
            check_only=self._check_only,
            evaluate_only=self._evaluate_only,
        )
        self._keeper.keep(again, running=child)
        probe = self._frozen.probe(lambda: self._keeper.child(child.name), self._client.answers, ready=child)
        self._keeper.supervise("coordinator-watch", probe)

    async def _first_coordinator(self, redis_url: str) -> tuple[Child, int]:
        """Starts the coordinator; returns it with its port when it answers. Raises DiskFull when a full disk has ended it."""
        read_fd, write_fd = os.pipe()
        command = coordinator_command(
            self._own,
            run_dir=self._run_dir,
            redis_url=redis_url,
            redis_password=self._redis_password,
            port=self._config.network.coordinator_port,
            ready_fd=write_fd,
            check_only=self._check_only,
            evaluate_only=self._evaluate_only,
        )
        try:
            child = await start(command, log_path=self._log(command.name), pass_fds=[write_fd])
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        try:
            return child, int(await read_ready(read_fd, child, timeout_s=self._config.launch.ready_timeout_s))
        except BaseException as error:
            await child.stop(grace_s=self._config.launch.grace_s, at_once=self._interrupts.second)
            if isinstance(error, LaunchError):
                await self._raise_if_full()
            raise

    async def _raise_if_full(self) -> None:
        try:
            await asyncio.to_thread(prove_room, self._run_dir, ROOM_BYTES)
        except NoRoom as full:
            raise DiskFull(str(full)) from full

    async def _watch_redis(self, redis: EmbeddedRedis) -> None:
        """Probes the server until cancelled; a restarted server has the same socket."""

        def running() -> Child | None:
            assert self._redis is not None
            return self._redis.child if self._redis.child.alive else None

        await self._frozen.probe(running, redis.answers, ready=redis.child)

    async def _is_finished(self) -> bool:
        assert self._client is not None
        try:
            return (await self._client.status()).state == pb.RUN_STATE_FINISHED
        except SluiceError:
            return False  # the coordinator died right after its start; the keeper restarts it or ends the run

    # --- watch ---------------------------------------------------------------------------------------------------

    async def _until_over(self, interrupted: asyncio.Task[bool]) -> tuple[int, str]:
        """Waits until the run is over; returns the exit code and the reason. A signal stops the run in order first."""
        failed = self._keeper.failed
        watching = asyncio.create_task(self._watch_status(), name="status")
        events = asyncio.create_task(self._watch_events(), name="events")
        try:
            await asyncio.wait([watching, events, interrupted, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                await failed
            if events.done():
                events.result()
            if watching.done():
                return watching.result()
            self._view.message("interrupted: stopping (again to stop at once)")
            await self._stop_in_order(watching)
            return exit_codes.INTERRUPTED, "interrupted"
        finally:
            for task in (watching, events):
                task.cancel()
            await asyncio.gather(watching, events, return_exceptions=True)

    async def _stop_in_order(self, watching: asyncio.Task[tuple[int, str]]) -> None:
        """Asks the coordinator to stop and waits for the final state, the grace time or a second signal."""
        assert self._client is not None
        second = asyncio.create_task(self._interrupts.second.wait())
        with contextlib.suppress(SluiceError):
            await self._client.stop(reason="interrupted")
        await asyncio.wait([watching, second], timeout=self._config.launch.grace_s, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()

    async def _watch_status(self) -> tuple[int, str]:
        """Feeds the view once a second; returns when the run is over and the learner, which exports the model, has left."""
        assert self._client is not None
        export = ExportWait(self._config)
        while True:
            with contextlib.suppress(SluiceError):  # the coordinator may be restarting; the keeper watches the restart
                asked_s = time.monotonic()
                self._status = await self._client.status()
                ages_s = {service.service_id: service.heartbeat_age_s for service in self._status.services}
                self._keeper.known |= set(ages_s)
                self._frozen.services(ages_s, asked_s=asked_s)
                self._view.update(self._status)
                await self._client.report_places(self._keeper.places())
                await self._autoscale(self._status, now_s=asked_s)
                if self._status.state in FINAL:
                    is_over = export.is_over(self._status, now_s=asked_s)
                    exporting = "learner" in self._keeper.known and not is_over
                    if not exporting or await self._keeper.left("learner", within_s=STATUS_INTERVAL_S):
                        self._status = await self._client.status()
                        return FINAL[self._status.state], self._status.reason
                    continue
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _is_over(self) -> bool:
        """Whether the run has ended. Asks twice, because the learner of a run that stops leaves a moment before the end."""
        assert self._client is not None
        for _ in range(2):
            with contextlib.suppress(SluiceError):
                if (await self._client.status()).state in FINAL:
                    return True
            await asyncio.sleep(2 * STATUS_INTERVAL_S)
        return False

    async def _registered(self) -> set[str]:
        """The services that the coordinator lists now; none while the coordinator does not answer."""
        if self._client is None:
            return set()
        try:
            return {service.service_id for service in (await self._client.status()).services}
        except SluiceError:
            return set()

    async def _watch_events(self) -> None:
        """Feeds the view and starts or ends processes for `scale`; outlives restarts of the coordinator."""
        assert self._client is not None
        while True:
            with contextlib.suppress(SluiceError):
                async for event in self._client.watch(launcher=True):
                    self._view.event(event)
                    if event.kind == "step_trained" and self._autoscaler is not None:
                        self._autoscaler.step(event.values)
                    if event.kind == "scale":
                        await self._scale(event.labels["role"], int(event.values["replicas"]))
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _autoscale(self, status: pb.GetStatusResponse, *, now_s: float) -> None:
        """Asks the coordinator for more or fewer rollouts, so that whoever watches the run sees the change and its reason."""
        if self._autoscaler is None or status.state != pb.RUN_STATE_RUNNING:
            return
        assert self._client is not None
        before = self._autoscaler.wished
        ready = [one.running for one in status.services if one.role == ROLLOUT and one.state == READY]
        if (replicas := self._autoscaler.look(ready, now_s=now_s)) != before:
            self._view.message(f"{replicas} rollouts instead of {before} {self._autoscaler.why()}")
            await self._client.scale("rollout", replicas)

    async def _scale(self, role: str, replicas: int) -> None:
        """Starts or ends replicas of a role until there are `replicas`."""
        if self._autoscaler is not None and role == "rollout" and replicas != self._autoscaler.wished:
            self._autoscaler = None
            self._view.message(f"{replicas} rollouts by request: from now on their number follows requests alone")
        if owner := deployments.owner():
            self._view.message(await asyncio.to_thread(deployments.scale, owner, role, replicas))
            return
        running = self._keeper.names(role)
        for name in sorted(running):
            if int(name.removeprefix(f"{role}-")) >= replicas:
                await self._keeper.end(name)
                self._gpus.give_back(name)
        for index in range(replicas):
            if f"{role}-{index}" not in running:
                try:
                    self._keeper.keep(self._service(role, index), requested=True)
                except LaunchError as error:
                    self._view.message(f"scale {role} {replicas}: {error}")
                    break

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Ends every process: services first, then the coordinator, then Redis. A second signal leaves out the grace."""
        await self._keeper.stop(last="coordinator", at_once=self._interrupts.second)
        await self._engine.close()
        if self._client is not None:
            await self._client.close()
        if self._redis is not None:
            await self._redis.stop()
        if self._lock_fd is not None:
            os.close(self._lock_fd)

    def _log(self, name: str) -> Path:
        return self._run_dir / "logs" / f"{name}.log"
