"""Builds the coordinator from its parts, restores what Redis holds of the run, serves until the run has ended."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import structlog

from services.coordinator.api.gauges import disk_gauges, gauges, targets
from services.coordinator.api.linger import everybody_left
from services.coordinator.api.run_parts import Core
from services.coordinator.api.servicer import SERVICE_NAME, CoordinatorServicer
from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.loggers.all_loggers import open_loggers
from services.coordinator.prompts import PromptStream
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks, bring_in_line, surviving_evaluations
from services.coordinator.run.commits import Commits
from services.coordinator.run.evaluation import Evaluator
from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.run.reward_check import check_reward
from services.coordinator.run.stall import StallWatch
from services.coordinator.run.waits import Situation
from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import PromptLike, QueuedGroup
from services.coordinator.state.ledger import count, ledger_metrics
from services.coordinator.state.ledger_row import reopened
from services.coordinator.state.progress import Progress, RunState
from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.redis_access import redis_access
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.weights.prober import Prober
from services.coordinator.weights.push import WeightPush
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.messages import ZstdGroups
from sluice.clock import SystemClock
from sluice.config.derived import most_queued_bytes
from sluice.config.load import dump_config
from sluice.config.schema import Config
from sluice.errors import LaunchError, Unavailable
from sluice.launch.processes import EXIT_AGAIN
from sluice.model_identity import model_identity
from sluice.policy_version import PolicyVersion
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.server import make_server, stop_on_signals
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import coordinator_pb2_grpc

log = structlog.get_logger(__name__)

CHECKED_PROMPTS = 4
DISK_EVERY_S = 15.0
_EXIT_CODES = {RunState.FINISHED: 0, RunState.STOPPED: 0, RunState.STARVED: 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line says."""

    run_dir: Path
    redis_url: str
    bind: str
    port: int
    metrics_port: int
    ready_fd: int | None
    check_only: bool = False
    """End after the reward check."""
    reopen: bool = False
    """Go on with a run that was stopped or has failed."""
    idle: bool = False
    """Serve the API of a run that lies still, without going on with it."""
    stay: bool = False
    """Serve until a signal: whoever started this process ends it, and would only start it again."""
    own_redis: bool = False
    """Redis serves this run alone, and ends with it."""
    credentials: Credentials = field(default=NO_CREDENTIALS, repr=False)


async def serve(config: Config, options: Options) -> int:
    """Runs one coordinator; returns its exit code. The ready pipe is closed when it serves, or will not."""
    with contextlib.ExitStack() as started:
        ready = None if options.ready_fd is None else started.enter_context(os.fdopen(options.ready_fd, "w"))
        return await _serve(config, options, ready)


async def _serve(config: Config, options: Options, ready: TextIO | None) -> int:
    stop = asyncio.Event()
    stop_on_signals(stop)
    options.credentials.check_listens(options.bind)  # before Redis is touched
    core = await build(config, options)
    exporter = Exporter(service="coordinator")
    server = make_server(
        lambda grpc_server: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(
            CoordinatorServicer(core), grpc_server
        ),
        services=[SERVICE_NAME],
        credentials=options.credentials,
        calls_per_s=config.network.max_calls_per_s,
        exporter=exporter,
    )
    try:
        port = await server.start(bind=options.bind, port=options.port)
        metrics_port = None
        if config.network.metrics:
            metrics_port = exporter.serve(bind=options.bind, port=options.metrics_port)
        log.info("serving", address=f"{options.bind}:{port}", metrics_port=metrics_port, run_dir=str(options.run_dir))
        if ready is not None:
            ready.write(str(port))
            ready.close()
        return await _until_over(core, stop, exporter, options)
    finally:
        core.events.close()  # else watchers would use up the grace
        await server.stop(grace_s=2.0)
        exporter.close()
        await core.close()


async def _until_over(core: Core, stop: asyncio.Event, exporter: Exporter, options: Options) -> int:
    """The run's life beside the tasks that serve it; then a while to tell everybody. A rollback ends it at any time.

    A run that had ended before this process started is no failure of this process, however it ended: whoever keeps it
    alive need not start it again.
    """
    had_ended = core.progress.state.final
    background: list[asyncio.Task[Any]] = [
        asyncio.create_task(core.push.run(), name="weight-push"),
        asyncio.create_task(core.sweep_forever(), name="sweep"),
        asyncio.create_task(_export(core, exporter), name="metrics"),
        asyncio.create_task(_export_disk(core, exporter), name="disk"),
        asyncio.create_task(core.store.watch(), name="redis"),
        asyncio.create_task(core.stall.run(), name="stall"),
    ]
    stopped = asyncio.create_task(stop.wait(), name="signal")
    rollback_requested = asyncio.create_task(core.rollbacks.requested.wait(), name="rollback")
    life: asyncio.Task[Any] = stopped if options.idle else asyncio.create_task(core.lifecycle.run(), name="lifecycle")
    try:
        await asyncio.wait([life, stopped, rollback_requested, *background], return_when=asyncio.FIRST_COMPLETED)
        for task in background:
            if task.done():
                task.result()
                raise LaunchError(f"the coordinator's task {task.get_name()} ended by itself")
        if life.done() and not stopped.done():
            state = life.result()
            left = asyncio.create_task(stop.wait() if options.stay else everybody_left(core), name="left")
            background.append(left)
            await asyncio.wait([stopped, rollback_requested, left], return_when=asyncio.FIRST_COMPLETED)
            if not rollback_requested.done():
                code = 0 if had_ended else _EXIT_CODES.get(state, 1)
                if options.own_redis and code == 0:  # else this process is started again, and finds the run ended
                    await core.store.shut_down_server()
                return code
        elif not rollback_requested.done():
            log.info("stopping_on_signal", state=core.progress.state.value)
            return 0
    finally:
        for task in (life, stopped, rollback_requested, *background):
            task.cancel()
        await asyncio.gather(life, stopped, rollback_requested, *background, return_exceptions=True)
    await core.roll_back()
    return EXIT_AGAIN


async def _export(core: Core, exporter: Exporter) -> None:
    """Keeps the Prometheus gauges and the list of everybody's endpoints current."""
    while True:
        exporter.targets = targets(core.fleet, run_id=core.run_id)
        exporter.set(core.progress.metrics | core.live_gauges() | gauges(core))
        with contextlib.suppress(Unavailable):  # while Redis is away the ledger's gauges stand still
            exporter.set(ledger_metrics(count(await core.store.counters(), core.board)))
        await core.board.changed.wait(1.0)
        await core.clock.sleep(0.5)


async def _export_disk(core: Core, exporter: Exporter) -> None:
    """Apart from the others, which go on while a network's disk does not answer."""
    while True:
        exporter.set(await asyncio.to_thread(disk_gauges, core.files.run_dir))
        await core.clock.sleep(DISK_EVERY_S)


async def build(config: Config, options: Options) -> Core:
    """All parts, wired, with what Redis holds of the run."""
    run_id = options.run_dir.name
    clock, events, clients, codec = SystemClock(), Events(), Clients(options.credentials), ZstdGroups()
    identity = model_identity(config.model.path)
    training = PromptStream.open(config, split="train")
    held_out = PromptStream.open(config, split="val") if config.data.val_files else None
    data_facts = training.describe()
    log.info("data", **data_facts)
    evaluation_prompts: Sequence[PromptLike] = held_out.take(config.eval.prompts) if held_out else []
    store = Store(url=options.redis_url, run_id=run_id, access=redis_access(config.network))
    await store.open(most_queued_bytes=most_queued_bytes(config))
    files = RunFiles(options.run_dir)
    await files.keep_config(dump_config(config))
    ledger = LedgerFiles(store=store, files=files)
    rolled_back = await bring_in_line(store, files, ledger)
    prompts = PromptFeed(data=training, files=files)
    meta = await store.meta()
    progress = await _restored_progress(store, meta)
    if options.reopen:
        progress.reopen(total_steps=config.run.total_steps)
        await store.set_meta(progress.to_meta())
    loggers = open_loggers(config, run_dir=options.run_dir, trained_steps=progress.trained_steps)
    files.follow = loggers.put
    fleet = Fleet()
    board = Board(
        train_batch_size=config.data.train_batch_size,
        gen_batch_size=config.gen_batch_size,
        max_staleness=config.coordinator.max_staleness,
        partial_after=config.partial_after,
        changed=fleet.changed,
    )
    conductor = Conductor(
        config=config,
        run_id=run_id,
        board=board,
        fleet=fleet,
        store=store,
        prompts=prompts,
        rollouts=clients,
        rewards=clients,
        codec=codec,
        clock=clock,
        admitting=lambda: progress.admitting,
        cursor=meta.get("cursor", ""),
        admissions=int(meta.get("admissions", 0)),
    )
    assigner = Assigner(
        config=config, board=board, store=store, files=files, conductor=conductor, events=events, clock=clock
    )
    rollbacks = Rollbacks(
        made=rolled_back,
        store=store,
        files=files,
        ledger=ledger,
        board=board,
        assigner=assigner,
        progress=progress,
        events=events,
        newest_version=codec.newest_version,
        idle=options.idle,
    )
    progress.evaluations = surviving_evaluations(progress, rollbacks.history)
    push = WeightPush(
        fleet=fleet,
        clients=clients,
        events=events,
        clock=clock,
        timeout_s=config.weights.timeout_s,
        finish_s=config.coordinator.generate_timeout_s if config.weights.inflight == "finish" else None,
        prober=Prober(config=config, fleet=fleet, rollouts=clients, prompt=training.next(0)[0])
        if config.weights.probe
        else None,
    )
    commits = Commits(
        store=store,
        files=files,
        fleet=fleet,
        board=board,
        conductor=conductor,
        assigner=assigner,
        push=push,
        events=events,
        codec=codec,
        progress=progress,
        ledger=ledger,
        rollbacks=rollbacks,
        clock=clock,
    )
    evaluator = Evaluator(
        config=config,
        fleet=fleet,
        rollouts=clients,
        rewards=clients,
        prompts=evaluation_prompts,
        newest=lambda: progress.version,
        clock=clock,
    )

    async def reward_check() -> None:
        events.emit("data", ", ".join(f"{name} {value!r}" for name, value in data_facts.items()))
        checked = [training.next(position)[0] for position in range(CHECKED_PROMPTS)]
        limit_s = config.coordinator.score_timeout_s
        for row in await check_reward(fleet=fleet, rewards=clients, prompts=checked, timeout_s=limit_s):
            events.emit("reward_checked", str(row))

    lifecycle = Lifecycle(
        config=config,
        fleet=fleet,
        board=board,
        store=store,
        files=files,
        conductor=conductor,
        assigner=assigner,
        evaluator=evaluator,
        events=events,
        clock=clock,
        progress=progress,
        ledger=ledger,
        check_reward=reward_check,
        check_only=options.check_only,
    )

    def situation() -> Situation:
        return Situation(
            config=config,
            progress=progress,
            board=board,
            fleet=fleet,
            assigned=list(assigner.assigned),
            admissions=conductor.admissions,
            queued_bytes=conductor.queued_bytes,
            evaluating=evaluator.under_way,
        )

    stall = StallWatch(
        situation=situation,
        conductor=conductor,
        progress=progress,
        events=events,
        clock=clock,
        warn_after_s=config.coordinator.stall_warning_s,
    )
    await _restore_groups(store, board, conductor, assigner, prompts, progress)
    repair = Repair(
        config=config,
        run_id=run_id,
        store=store,
        files=files,
        board=board,
        conductor=conductor,
        assigner=assigner,
        progress=progress,
        events=events,
        facts=codec.accepted,
    )
    return Core(
        run_id=run_id,
        config=config,
        identity=identity,
        clock=clock,
        fleet=fleet,
        board=board,
        store=store,
        files=files,
        events=events,
        clients=clients,
        codec=codec,
        prompts=prompts,
        conductor=conductor,
        assigner=assigner,
        push=push,
        commits=commits,
        evaluator=evaluator,
        lifecycle=lifecycle,
        progress=progress,
        repair=repair,
        stall=stall,
        rollbacks=rollbacks,
        loggers=loggers,
        learner_fence=int(meta.get("learner_fence", 0)),
        learner_incarnation=meta.get("learner_incarnation", ""),
    )


async def _restored_progress(store: Store, meta: dict[str, str]) -> Progress:
    committed = await store.last_step("commit")
    record = await store.record("commit", committed) if committed >= 0 else None
    version = None if record is None else PolicyVersion(lineage=record["lineage"], number=record["number"])
    return Progress.from_meta(meta, trained_steps=committed + 1, version=version)


async def _restore_groups(
    store: Store,
    board: Board,
    conductor: Conductor,
    assigner: Assigner,
    prompts: PromptFeed,
    progress: Progress,
) -> None:
    """Open groups are generated again, accepted ones wait on, assigned ones belong to their batch."""
    board.next_step = await store.last_step("batch") + 1
    live = await store.live()
    assigned = {group_id: info for group_id, (state, info) in live.items() if state == "assigned"}
    for group_id, (state, info) in sorted(live.items(), key=lambda item: item[1][1]["admission"]):
        if state == "open":
            prompt, _ = prompts.next(info["cursor"])
            board.add(reopened(group_id, info, prompt))
        elif state == "queued":
            accepted = QueuedGroup(**info)
            board.restore(accepted)
            conductor.queued_bytes += accepted.payload_bytes
    for step in range(progress.trained_steps, board.next_step):
        batch = await store.record("batch", step)
        if batch is not None:
            # A repair that was broken off has ended some already, or has not come to those whose rows are in files.
            assigner.assigned[step] = [QueuedGroup(**assigned[name]) for name in batch["ids"] if name in assigned]
    if live:
        log.info("restored", live=len(live), trained_steps=progress.trained_steps, next_step=board.next_step)
