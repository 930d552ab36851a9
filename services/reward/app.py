"""Puts the reward service together and runs it: configuration, worker processes, self-check, server, registration.

Waits: for the coordinator (`Registration`, which gives up in time), then for a signal or the end of the run. Then the
service tells the coordinator that it is leaving, lets running calls end and stops.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import grpc
import structlog

from services.reward.alarm import GradingAlarm
from services.reward.environments.host import EnvironmentHost
from services.reward.environments.servicer import SERVICE_NAME as ENVIRONMENT_SERVICE
from services.reward.environments.servicer import EnvironmentServicer, infos
from services.reward.environments.starting import open_environments
from services.reward.ports import Graders
from services.reward.routing import Router
from services.reward.sandbox.guarded_process import Limits
from services.reward.sandbox.pools import GraderPools
from services.reward.sandbox.protections import check_programs, say_protections
from services.reward.scoring import OverlongBuffer, Scorer
from services.reward.self_check import KNOWN, gold_check
from services.reward.servicer import RewardServicer
from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.errors import LaunchError
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.membership import Membership
from sluice.rpc.metrics_gate import MetricsGate
from sluice.rpc.server import RpcServer, make_server
from sluice.rpc.service import ServiceOptions
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.process_tracer import CLOSE_WITHIN_S, open_tracer
from sluice.telemetry.traces.tracer import OFF, Tracer
from sluice.v1 import coordinator_pb2, environment_pb2_grpc, reward_pb2, reward_pb2_grpc

log = structlog.get_logger(__name__)

SERVICE_NAME = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name

_NO_GPUS = coordinator_pb2.Gpus()
"""Graders and environments are given no GPU."""


async def serve(options: ServiceOptions) -> None:
    """Runs the service until SIGTERM, SIGINT or the end of the run.

    Raises:
        ConfigError: the configuration cannot be used.
        LaunchError: a port is taken, or a built-in verifier judges a known answer wrongly.
        Unavailable: the coordinator did not answer for too long.
    """
    pools: GraderPools | None = None

    def describe() -> coordinator_pb2.RegisterRequest:
        assert pools is not None
        return coordinator_pb2.RegisterRequest(
            role=coordinator_pb2.SERVICE_ROLE_REWARD, capacity=pools.capacity, gpus=_NO_GPUS
        )

    def beat() -> coordinator_pb2.HeartbeatRequest:
        assert pools is not None
        return coordinator_pb2.HeartbeatRequest(running=pools.running)

    membership = Membership(options, describe=describe, beat=beat)
    exporter, tracer = Exporter(service="reward"), OFF
    try:
        config_yaml = await membership.registration.fetch_config()
        config = parse_config(config_yaml, where=f"coordinator {options.coordinator}")
        tracer = open_tracer(
            config,
            service="reward",
            instance=membership.service_id,
            run=membership.registration.run_name,
            run_dir=membership.registration.run_dir,
            exporter=exporter,
        )
        metrics_port = None
        if config.network.metrics:
            metrics_port = exporter.serve(
                bind=options.bind, port=options.metrics_port, guard=MetricsGate(options.credentials)
            )
        await say_protections()
        router = Router(config.reward.routes, allow_unsandboxed=config.reward.allow_unsandboxed)
        await check_programs(router.must_shut_in)
        async with open_graders(config, router) as pools, open_environments(config) as host:
            server = await make_reward_server(
                config, router, pools, exporter, credentials=options.credentials, environments=host, tracer=tracer
            )
            port = await server.start(bind=options.bind, port=options.port)
            try:
                membership.serves(port=port, metrics_port=metrics_port)
                async with hosting(options, host, port=port):
                    await membership.stay()
                await membership.leave()
            finally:
                await server.stop(grace_s=0.8 * config.launch.grace_s)
    finally:
        exporter.close()
        await asyncio.to_thread(tracer.close, within_s=CLOSE_WITHIN_S)
        await membership.registration.close()
    log.info("stopped")


@asynccontextmanager
async def hosting(options: ServiceOptions, host: EnvironmentHost, *, port: int) -> AsyncIterator[None]:
    """Has this process in the run a second time meanwhile, as a server of environments at the same address, if it hosts
    any.
    """
    if not host.hosted:
        yield
        return

    def describe() -> coordinator_pb2.RegisterRequest:
        return coordinator_pb2.RegisterRequest(
            role=coordinator_pb2.SERVICE_ROLE_ENVIRONMENT,
            capacity=host.capacity,
            environments=infos(host),
            gpus=_NO_GPUS,
        )

    service_id = options.service_id and f"{options.service_id}-environments"
    membership = Membership(
        replace(options, service_id=service_id),
        describe=describe,
        beat=lambda: coordinator_pb2.HeartbeatRequest(running=host.running),
    )
    membership.serves(port=port, metrics_port=None)
    try:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(membership.stay_beside())
            yield
            beating.cancel()
        await membership.leave()
    finally:
        await membership.registration.close()


async def make_reward_server(
    config: Config,
    router: Router,
    graders: Graders,
    exporter: Exporter,
    *,
    credentials: Credentials = NO_CREDENTIALS,
    environments: EnvironmentHost | None = None,
    tracer: Tracer = OFF,
) -> RpcServer:
    """A server over running graders, and over environments where there are any, not yet started.

    Raises LaunchError when the self-check failed.
    """
    scorer = make_scorer(config, graders, router)
    # What the recipe routes elsewhere has no known answer: a route "*" takes even the built-in data sources.
    known = [row for row in KNOWN if not router.is_routed_by_recipe(row.question.data_source)]
    if problems := await gold_check(known, scorer):
        raise LaunchError("reward: the self-check failed\n" + "\n".join(problems))
    alarm = GradingAlarm(fraction=config.reward.warn_ungraded_fraction)
    servicer = RewardServicer(scorer=scorer, router=router, alarm=alarm, exporter=exporter)

    def register(server: grpc.aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server)
        if environments is not None and environments.hosted:
            of_environments = EnvironmentServicer(environments, turn_timeout_s=config.rollout.turn_timeout_s)
            environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(of_environments, server)

    hosts = environments is not None and bool(environments.hosted)
    return make_server(
        register,
        services=[SERVICE_NAME, *([ENVIRONMENT_SERVICE] if hosts else [])],
        credentials=credentials,
        calls_per_s=config.network.max_calls_per_s,
        exporter=exporter,
        tracer=tracer,
    )


def make_scorer(config: Config, graders: Graders, router: Router) -> Scorer:
    """A Scorer with the configuration's settings, over running graders."""
    return Scorer(
        graders=graders, router=router, max_answer_chars=config.reward.max_answer_chars, overlong=_overlong(config)
    )


def open_graders(config: Config, router: Router) -> AbstractAsyncContextManager[GraderPools]:
    """Starts worker processes for the routes of `router`; the processes live as long as the context."""
    reward = config.reward
    limits = Limits(
        timeout_s=reward.timeout_s,
        memory_bytes=reward.worker_memory_bytes,
        file_bytes=reward.worker_file_bytes,
        max_processes=reward.worker_max_processes,
        recycle_after=reward.recycle_after,
        environment=(*reward.environment, *router.key_variables),
    )
    return GraderPools.open(workers=reward.workers, limits=limits, network=router.needs_network)


def _overlong(config: Config) -> OverlongBuffer | None:
    buffer = config.reward.overlong_buffer
    if not buffer.enable:
        return None
    return OverlongBuffer(
        max_response_length=config.data.max_response_length,
        buffer_len=buffer.len,
        penalty_factor=buffer.penalty_factor,
    )
