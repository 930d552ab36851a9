"""Puts the rollout service together and runs it: configuration, engine, server, registration, until a signal.

The configuration is fetched first, because the service registers the facts of a loaded model. Waits: for the coordinator
(`Registration` gives up in time), then for a signal, the end of the run or the engine's failure. Then the service tells
the coordinator that it is leaving, lets running samples end for half of the grace time, aborts the rest and stops.
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from services.rollout.adapters.engine_environment import set_environment
from services.rollout.concurrency import Concurrency, handed_over
from services.rollout.engine import Engine
from services.rollout.engine_loop import EngineFailed, EngineLoop
from services.rollout.engine_metrics import RolloutMetrics
from services.rollout.engine_watch import end_process, hung_s
from services.rollout.model_files import ModelFacts, read_model
from sluice.clock import SystemClock
from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.config.schema.rollout import DEFAULT_SAMPLES
from sluice.errors import ConfigError
from sluice.interfaces import prefer_for_nccl
from sluice.policy_version import OWN_WEIGHTS
from sluice.rpc.gpus import gpus_message
from sluice.rpc.membership import Membership
from sluice.rpc.metrics_gate import MetricsGate
from sluice.rpc.policy_versions import version_to_proto
from sluice.rpc.server import RpcServer, make_server
from sluice.rpc.service import ServiceOptions
from sluice.shared_memory import check_room
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.process_tracer import CLOSE_WITHIN_S, open_tracer
from sluice.telemetry.traces.tracer import OFF
from sluice.v1 import common_pb2, coordinator_pb2, rollout_pb2, rollout_pb2_grpc
from sluice.weights.adapters import pushes_adapters
from sluice.weights.lending import reach

log = structlog.get_logger(__name__)

SERVICE_NAME = rollout_pb2.DESCRIPTOR.services_by_name["RolloutService"].full_name

WAITING_FACTOR = 128
"""Samples that may run or wait, divided by samples that run at once: room for two of DAPO's batches (512 x 16) on one
engine of 256. A waiting sample costs its share of the group's prompt, so the bound is only against runaway callers."""

THREAD_SWITCH_S = 0.0005
"""Python's thread switch interval: how long the engine's thread may keep Python's lock from the event loop's thread.
Measured on 2 cores, 256 running samples of the demo model: 1.02 x the tokens/s of the bare engine, against 0.96 x at
Python's default of 5 ms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(ServiceOptions):
    """The command line."""

    engine: str
    """"vllm" or "transformers"; empty: the configuration's engine."""
    own_weights: bool
    """Serve the weights of the model's folder: an evaluation without a learner."""


async def serve(options: Options) -> None:
    """Runs the service until SIGTERM, SIGINT or the end of the run.

    Raises:
        ConfigError: the model cannot serve this configuration.
        LaunchError: a port is taken.
        Unavailable: the coordinator did not answer for too long.
        EngineFailed: the engine is lost.
    """
    service = _Service(options)
    try:
        config = parse_config(await service.registration.fetch_config(), where=f"coordinator {options.coordinator}")
        await service.run(config)
    finally:
        await service.registration.close()
    log.info("stopped")


def make_engine(config: Config, model: ModelFacts, *, kind: str) -> Engine:
    """Loads the model into the engine. Raises ConfigError when prompt and response do not fit the model's context."""
    max_model_len = config.longest_sequence
    if max_model_len > model.max_position_embeddings:
        budgets = (
            "data.max_episode_tokens" if config.environments else "data.max_prompt_length + data.max_response_length"
        )
        raise ConfigError(
            f"{budgets}: must be <= {model.max_position_embeddings}, the context of {model.path}, got {max_model_len}"
        )
    rollout = config.rollout
    set_environment(threads=rollout.threads)
    if kind == "transformers":
        from services.rollout.adapters.transformers_engine import TransformersEngine

        return TransformersEngine(
            model, dtype=config.model.dtype, max_model_len=max_model_len, max_num_seqs=_fixed_samples(config)
        )
    assert kind == "vllm", f"no branch makes the engine {kind}"
    from services.rollout.adapters.vllm_engine import VllmEngine

    return VllmEngine(
        model,
        dtype=config.model.dtype,
        max_model_len=max_model_len,
        max_num_seqs=rollout.most_samples,
        tensor_parallel_size=rollout.tensor_parallel_size,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        enforce_eager=rollout.enforce_eager,
        kv_cache_bytes=rollout.kv_cache_bytes,
    )


def _fixed_samples(config: Config) -> int:
    """`rollout.max_num_seqs` for an engine that cannot tell how full its cache is."""
    chosen = config.rollout.max_num_seqs
    return DEFAULT_SAMPLES if chosen == "auto" else chosen


def _concurrency(config: Config, engine: Engine) -> Concurrency | None:
    """What `rollout.max_num_seqs: auto` asks for, where the engine has a bounded cache."""
    if config.rollout.max_num_seqs != "auto" or engine.kv_use is None:
        return None
    concurrency = Concurrency(most=engine.capacity)
    engine.limit = concurrency.limit
    return concurrency


class _Service:
    """This process's engine, server and registration."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._exporter = Exporter(service="rollout")
        self._metrics = RolloutMetrics(self._exporter, service="rollout")
        self._membership = Membership(options, describe=self._describe, beat=self._beat)
        self.registration = self._membership.registration
        self._tracer = OFF

    async def run(self, config: Config) -> None:
        self._tracer = open_tracer(
            config,
            service="rollout",
            instance=self._membership.service_id,
            run=self.registration.run_name,
            run_dir=self.registration.run_dir,
            exporter=self._exporter,
        )
        check_room(config, engine=self._options.engine)
        prefer_for_nccl(self._options.advertise)
        model = read_model(Path(config.model.path))
        engine = make_engine(config, model, kind=self._options.engine or config.rollout.engine)
        log.info("engine_ready", engine=engine.name, max_model_len=engine.max_model_len, capacity=engine.capacity)
        sys.setswitchinterval(THREAD_SWITCH_S)
        # torch is imported after an engine's environment is set
        from sluice.accelerator import identity, model_of_gpu

        self._device = identity()
        self._gpus = gpus_message(model_of_gpu(), count=config.rollout.tensor_parallel_size)
        self._model = model
        self._concurrency = _concurrency(config, engine)
        self._loop = EngineLoop(engine, max_samples=WAITING_FACTOR * engine.capacity, concurrency=self._concurrency)
        if self._options.own_weights:
            self._loop.serve_own(OWN_WEIGHTS)
        self._loop.start()
        server = self._make_server(config)
        try:
            metrics_port = None
            if config.network.metrics:
                metrics_port = self._exporter.serve(
                    bind=self._options.bind,
                    port=self._options.metrics_port,
                    guard=MetricsGate(self._options.credentials),
                )
            port = await server.start(bind=self._options.bind, port=self._options.port)
            if self._links is not None:
                self._links.rpc_port = port
            self._membership.serves(port=port, metrics_port=metrics_port)
            await self._hold(step_limit_s=config.rollout.step_timeout_s)
            await self._leave(grace_s=0.5 * config.launch.grace_s)
        finally:
            await server.stop(grace_s=0.1 * config.launch.grace_s)
            self._weights.close()
            if self._streams is not None:
                self._streams.close()
            self._loop.close()
            self._tracer.close(within_s=CLOSE_WITHIN_S)
            self._exporter.close()

    def _make_server(self, config: Config) -> RpcServer:
        # These imports load torch, so they come after `make_engine`, which bounds torch's threads.
        from blake3 import blake3
        from transformers import AutoTokenizer

        from services.rollout.adapter_merging import AdapterMerger
        from services.rollout.servicer import RolloutServicer
        from services.rollout.weight_intake import WeightIntake
        from services.rollout.weight_relay import WeightRelay
        from sluice.accelerator import CPU
        from sluice.weights.carrier import settled_backend
        from sluice.weights.deltas import threads_beside
        from sluice.weights.receiver import WeightReceiver
        from sluice.weights.streams import WeightStreams

        tokenizer: Any = AutoTokenizer.from_pretrained(self._model.path)
        receiver = WeightReceiver(
            shares=True,
            keeps_base=config.weights.delta_share > 0,
            threads=threads_beside(on_cuda=self._device != CPU),
            digest_threads=1 if self._device == CPU else blake3.AUTO,
            credentials=self._options.credentials,
        )
        bind, credentials = self._options.bind, self._options.credentials
        relay = WeightRelay(
            receiver,
            backend=settled_backend(config, bind=bind, credentials=credentials),
            host=self._options.advertise,
            bind=bind,
            device=self._device,
        )
        self._links = relay.links
        streams = self._streams = WeightStreams(relay.links.offered) if relay.links is not None else None
        self._weights = WeightIntake(
            loop=self._loop,
            receiver=receiver,
            model=self._model,
            inflight=config.weights.inflight,
            finish_s=config.coordinator.generate_timeout_s,
            merger=AdapterMerger(self._model, config) if pushes_adapters(config) else None,
            relay=relay,
        )
        servicer = RolloutServicer(
            loop=self._loop,
            weights=self._weights,
            model=self._model,
            decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            rollout_id=lambda: self._membership.service_id,
        )

        def register(server: grpc.aio.Server) -> None:
            rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, server)
            if streams is not None:
                streams.add_to(server)

        return make_server(
            register,
            services=[SERVICE_NAME] if streams is None else [SERVICE_NAME, streams.name],
            credentials=credentials,
            calls_per_s=config.network.max_calls_per_s,
            exporter=self._exporter,
            tracer=self._tracer,
        )

    async def _hold(self, *, step_limit_s: float) -> None:
        """Registers and heartbeats until a signal or the end of the run.

        Raises EngineFailed when the engine is lost; an engine that hangs ends the process.
        """
        hanging = asyncio.create_task(hung_s(self._loop, limit_s=step_limit_s, clock=SystemClock()))
        try:
            await self._membership.stay(self._loop.failed, hanging)
            if hanging.done():
                end_process(hanging.result(), limit_s=step_limit_s)
        finally:
            hanging.cancel()
        if self._loop.failed.done():
            raise EngineFailed("the engine failed; its traceback is in the log above")

    async def _leave(self, *, grace_s: float) -> None:
        await self._membership.leave()
        aborted = await self._loop.drain(timeout_s=grace_s)
        log.info("drained", aborted_samples=len(aborted))

    def _describe(self) -> coordinator_pb2.RegisterRequest:
        engine = self._loop.engine
        return coordinator_pb2.RegisterRequest(
            role=coordinator_pb2.SERVICE_ROLE_ROLLOUT,
            model_hash=self._model.model_hash,
            tokenizer_hash=self._model.tokenizer_hash,
            engine=engine.name,
            device=self._device,
            gpus=self._gpus,
            memory=reach(),
            capacity=engine.capacity,
            max_model_len=engine.max_model_len,
            version=self._version_message(),
            own_weights=self._options.own_weights,
        )

    def _beat(self) -> coordinator_pb2.HeartbeatRequest:
        kv_use = self._loop.take_kv_use()
        limit = None if self._concurrency is None else self._concurrency.take_largest()
        self._metrics.refresh(self._loop, kv_use=kv_use, limit=limit)
        return coordinator_pb2.HeartbeatRequest(
            running=self._loop.running,
            version=self._version_message(),
            generated_tokens=self._loop.engine.generated_tokens,
            kv_use=kv_use,
            preemptions=self._loop.engine.preemptions,
            capacity=0 if limit is None else handed_over(limit),
        )

    def _version_message(self) -> common_pb2.PolicyVersion | None:
        version = self._loop.version
        return None if version is None else version_to_proto(version)
