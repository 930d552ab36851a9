"""`sluice up`: Redis and coordinator here, rewards, rollouts and learner where an engine places each; restarts what dies;
ends cleanly.

 who waits     for what                  unblocked by
 the watcher   the run's final state     the coordinator's status, a service that cannot be kept alive, a signal
control_plane.py starts Redis and the coordinator, fleet.py the services; keeper.py keeps all of them alive, frozen.py finds
those that are frozen. A run directory that is started again continues its run.
"""

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sluice.client import AsyncClient
from sluice.clock import SystemClock
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.launch import deployments
from sluice.launch.commands import credentials_folder
from sluice.launch.control_plane import ControlPlane
from sluice.launch.engines.checked import CheckedEngine
from sluice.launch.engines.local import LocalEngine
from sluice.launch.engines.port import Engine
from sluice.launch.export_wait import ExportWait
from sluice.launch.fleet import Fleet
from sluice.launch.frozen import FrozenWatch
from sluice.launch.gpus import Gpus, shared_out
from sluice.launch.interrupts import Interrupts
from sluice.launch.keeper import Keeper
from sluice.launch.log_sizes import keep_small
from sluice.launch.own_network import settled
from sluice.launch.run_lock import lock_run_dir
from sluice.launch.view import View
from sluice.limits import NAME_CHARACTERS
from sluice.process import exit_codes
from sluice.report.figures import printable
from sluice.rpc.access import Role
from sluice.rpc.credentials import Credentials, load_credentials
from sluice.run_dir.durable import make_folder, write_synced
from sluice.run_dir.full_disk import DiskWaits
from sluice.v1 import coordinator_pb2 as pb
from sluice.weights.carrier import settled_backend

STATUS_INTERVAL_S = 1.0
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
        self._evaluate_only = evaluate_only
        self._ready_fd = ready_fd
        self._engine = engine or LocalEngine()
        self._disk = DiskWaits(
            clock=SystemClock(), tell=lambda event, line: view.message(f"{event}: {line}"), folder=run_dir
        )
        if self._engine.name != LocalEngine.name:
            self._engine = CheckedEngine(self._engine, model_path=config.model.path, disk=self._disk)
        self._interrupts = Interrupts()
        self._lock_fd: int | None = None
        self._plane: ControlPlane | None = None
        self._fleet: Fleet | None = None
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
        gpus = await self._share_gpus()
        own, operator = await self._settle_network()
        await self._disk.write(write_synced, self._run_dir / "config.yaml", [dump_config(self._config).encode()])
        self._plane = ControlPlane(
            config=own,
            run_dir=self._run_dir,
            lock_fd=self._lock_fd,
            operator=operator,
            keeper=self._keeper,
            frozen=self._frozen,
            disk=self._disk,
            at_once=self._interrupts.second,
            check_only=self._check_only,
            evaluate_only=self._evaluate_only,
        )
        await self._plane.start()
        if await self._is_finished():
            return False
        if self._ready_fd is not None:
            os.write(self._ready_fd, self._plane.address.encode())
            os.close(self._ready_fd)
        self._fleet = Fleet(
            config=self._config,
            run_id=self._run_dir.name,
            coordinator=self._plane.address,
            keeper=self._keeper,
            gpus=gpus,
            say=self._view.message,
            check_only=self._check_only,
            evaluate_only=self._evaluate_only,
        )
        await self._fleet.start(self._registered)
        return True

    async def _share_gpus(self) -> Gpus:
        """Puts what the GPUs decide into the recipe, and says who gets which. Raises ConfigError where they do not suffice."""
        learner = not self._check_only and not self._evaluate_only
        out = await shared_out(
            self._config, self._engine, learner=learner, rollouts=not self._check_only and not deployments.owner()
        )
        self._config = out.config
        for line in () if self._check_only else out.lines:
            self._view.message(line)
        return Gpus(out)

    async def _settle_network(self) -> tuple[Config, Credentials]:
        """Finds this machine's addresses and the run's credentials, before anything listens: the configuration of the
        processes beside the launcher, and the operator's credentials."""
        found = await self._disk.write(settled, self._config, run_dir=self._run_dir, address=self._engine.address)
        self._config = found.config
        if found.said:
            self._view.message(found.said)
        operator = load_credentials(credentials_folder(found.own, Role.OPERATOR), role=Role.OPERATOR)
        operator.check_listens(found.own.network.bind)
        if self._config.weights.backend == "grpc":
            learner = load_credentials(credentials_folder(found.own, Role.LEARNER), role=Role.LEARNER)
            settled_backend(found.own, bind=found.own.network.bind, credentials=learner)
        return found.own, operator

    @property
    def _client(self) -> AsyncClient:
        assert self._plane is not None
        return self._plane.client

    async def _is_finished(self) -> bool:
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
        second = asyncio.create_task(self._interrupts.second.wait())
        with contextlib.suppress(SluiceError):
            await self._client.stop(reason="interrupted")
        await asyncio.wait([watching, second], timeout=self._config.launch.grace_s, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()

    async def _watch_status(self) -> tuple[int, str]:
        """Feeds the view once a second; returns when the run is over and the learner, which exports the model, has left."""
        assert self._fleet is not None
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
                await self._fleet.follow_load(self._status, self._client, now_s=asked_s)
                if self._status.state in FINAL:
                    is_over = export.is_over(self._status, now_s=asked_s)
                    exporting = "learner" in self._keeper.known and not is_over
                    if not exporting or await self._keeper.left("learner", within_s=STATUS_INTERVAL_S):
                        self._status = await self._client.status()
                        code = exit_codes.BAD_USAGE if self._status.refused else FINAL[self._status.state]
                        return code, self._status.reason
                    continue
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _is_over(self) -> bool:
        """Whether the run has ended. Asks twice, because the learner of a run that stops leaves a moment before the end."""
        for _ in range(2):
            with contextlib.suppress(SluiceError):
                if (await self._client.status()).state in FINAL:
                    return True
            await asyncio.sleep(2 * STATUS_INTERVAL_S)
        return False

    async def _registered(self) -> set[str]:
        """The services that the coordinator lists now; none while the coordinator does not answer."""
        if self._plane is None or not self._plane.is_up:
            return set()
        try:
            return {service.service_id for service in (await self._client.status()).services}
        except SluiceError:
            return set()

    async def _watch_events(self) -> None:
        """Feeds the view and starts or ends processes for `scale`; outlives restarts of the coordinator."""
        assert self._fleet is not None
        while True:
            with contextlib.suppress(SluiceError):
                async for event in self._client.watch(launcher=True):
                    self._view.event(event)
                    if event.kind == "step_trained":
                        self._fleet.step(event)
                    if event.kind == "scale":
                        await self._scale(self._fleet, event)
            await asyncio.sleep(STATUS_INTERVAL_S)

    async def _scale(self, fleet: Fleet, event: pb.WatchEventsResponse) -> None:
        """Does what a `scale` event asks for, and tells whoever waits for that."""
        role = event.labels["role"]
        refused = await fleet.scale(role, int(event.values["replicas"]))
        outcome = pb.ScaleOutcome(order=event.labels.get("order", ""), replicas=len(self._keeper.names(role)))
        outcome.refused = printable(refused)[:NAME_CHARACTERS]
        with contextlib.suppress(SluiceError):  # a coordinator that is away, or older, has nobody who waits
            await self._client.report_places(self._keeper.places(), scaled=outcome)

    # --- stop ----------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Ends every process: services first, then the coordinator, then Redis. A second signal leaves out the grace."""
        await self._keeper.stop(last="coordinator", at_once=self._interrupts.second)
        try:
            await self._engine.close()
        finally:
            if self._plane is not None:
                await self._plane.close()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
