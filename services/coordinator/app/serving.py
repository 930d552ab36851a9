"""Serves one run until the run has ended: the API, the run's life, and the tasks beside the two."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, TextIO

import structlog

from services.coordinator.api.gauge_refresh import export_disk, export_run
from services.coordinator.api.linger import everybody_left
from services.coordinator.api.run_parts import RunParts
from services.coordinator.api.servicer import SERVICE_NAME, CoordinatorServicer
from services.coordinator.app.opening import open_run
from services.coordinator.app.options import Options
from services.coordinator.app.parts import make_parts
from services.coordinator.app.resuming import resume
from services.coordinator.run.heartbeats import sweep_forever
from services.coordinator.state.progress import RunState
from sluice.addresses import joined
from sluice.config.schema import Config
from sluice.errors import LaunchError
from sluice.process import exit_codes
from sluice.rpc.metrics_gate import MetricsGate
from sluice.rpc.server import make_server, stop_on_signals
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import coordinator_pb2_grpc

log = structlog.get_logger(__name__)

_EXIT_CODES = {RunState.FINISHED: 0, RunState.STOPPED: 0, RunState.STARVED: 3}


async def serve(config: Config, options: Options) -> int:
    """Runs one coordinator; returns its exit code. Closes the ready pipe when the coordinator serves, or cannot serve."""
    with contextlib.ExitStack() as started:
        ready = None if options.ready_fd is None else started.enter_context(os.fdopen(options.ready_fd, "w"))
        return await _serve(config, options, ready)


async def _serve(config: Config, options: Options, ready: TextIO | None) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    options.credentials.check_listens(options.bind)  # before Redis is touched
    parts = make_parts(await open_run(config, options), options)
    await resume(parts)
    exporter = Exporter(service="coordinator")
    server = make_server(
        lambda grpc_server: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(
            CoordinatorServicer(parts), grpc_server
        ),
        services=[SERVICE_NAME],
        credentials=options.credentials,
        calls_per_s=config.network.max_calls_per_s,
        exporter=exporter,
        tracer=parts.run.tracer,
    )
    try:
        port = await server.start(bind=options.bind, port=options.port)
        metrics_port = None
        if config.network.metrics:
            metrics_port = exporter.serve(
                bind=options.bind, port=options.metrics_port, guard=MetricsGate(options.credentials)
            )
        log.info("serving", address=joined(options.bind, port), metrics_port=metrics_port, run_dir=str(options.run_dir))
        async with _gateway(parts, options):
            if ready is not None:
                ready.write(str(port))
                ready.close()
            return await _until_over(parts, stop, exporter, options)
    finally:
        parts.run.events.close()  # open watches would use up the grace time
        try:
            await server.stop(grace_s=2.0)
        finally:
            exporter.close()
            await parts.close()


@contextlib.asynccontextmanager
async def _gateway(parts: RunParts, options: Options) -> AsyncIterator[None]:
    """Serves agents meanwhile, where the run has an environment of theirs and is not merely looked at."""
    if parts.gateway is None or options.check_only or options.idle:
        yield
        return
    async with parts.gateway.serving(
        bind=options.bind, port=parts.run.config.network.gateway_port, tls=options.credentials.http_tls()
    ) as address:
        log.info("serving_agents", address=address)
        yield


async def _until_over(parts: RunParts, stop: asyncio.Event, exporter: Exporter, options: Options) -> int:
    """Runs the run's life and the serving tasks; then serves on until all services have heard that the run has ended.

    A rollback ends the life at any time. For a run that had ended before this process started the exit code is 0, also for
    a failed run, so that a launcher need not start this process again.
    """
    had_ended = parts.run.progress.state.final
    background: list[asyncio.Task[Any]] = [
        asyncio.create_task(parts.push.run(), name="weight-push"),
        asyncio.create_task(sweep_forever(parts.run), name="sweep"),
        asyncio.create_task(export_run(parts, exporter), name="metrics"),
        asyncio.create_task(export_disk(parts, exporter), name="disk"),
        asyncio.create_task(parts.store.watch(), name="redis"),
        asyncio.create_task(parts.stall.run(), name="stall"),
    ]
    if parts.gateway is not None:
        background.append(asyncio.create_task(parts.gateway.stay(), name="gateway"))
    stopped = asyncio.create_task(stop.wait(), name="signal")
    rollback_requested = asyncio.create_task(parts.rollbacks.requested.wait(), name="rollback")
    life: asyncio.Task[Any] = stopped if options.idle else asyncio.create_task(parts.lifecycle.run(), name="lifecycle")
    try:
        await asyncio.wait([life, stopped, rollback_requested, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in background:
            if task.done():
                task.result()
                raise LaunchError(f"the coordinator's task {task.get_name()} ended by itself")
        if life.done() and not stopped.done():
            state = life.result()
            left = asyncio.create_task(stop.wait() if options.stay else everybody_left(parts.run), name="left")
            background.append(left)
            await asyncio.wait([stopped, rollback_requested, left], return_when=asyncio.FIRST_COMPLETED)
            if not rollback_requested.done():
                code = 0 if had_ended else _EXIT_CODES.get(state, 1)
                if (
                    options.own_redis and code == 0
                ):  # otherwise this process is started again and finds that the run has ended
                    await parts.store.shut_down_server()
                return code
        elif not rollback_requested.done():
            log.info("stopping_on_signal", state=parts.run.progress.state.value)
            return 0
    finally:
        if not rollback_requested.done():  # which has more to write, and waits for room itself
            parts.run.disk.give_up()
        for task in (life, stopped, rollback_requested, *background):
            task.cancel()
        await asyncio.gather(life, stopped, rollback_requested, *background, return_exceptions=True)
    await parts.roll_back()
    return exit_codes.AGAIN
