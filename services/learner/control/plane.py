"""Rank 0's membership in the run, its gRPC server and its calls to the coordinator, in a thread of their own."""

import asyncio
from collections.abc import Callable

import grpc
import structlog
import torch

from services.learner.checkpoint.training_record import TrainingRecord
from services.learner.control.link import CoordinatorLink
from services.learner.control.publisher_state import PublisherState
from services.learner.control.thread import ControlThread
from services.learner.control.wire import trained_to_wire
from sluice.addresses import joined
from sluice.clock import SystemClock
from sluice.config.schema import Config
from sluice.model_identity import ModelIdentity, model_identity, vocabulary_size
from sluice.rpc.membership import Membership
from sluice.rpc.metrics_gate import MetricsGate
from sluice.rpc.policy_versions import version_to_proto
from sluice.rpc.server import RpcServer, make_server
from sluice.rpc.service import ServiceOptions
from sluice.run_dir.full_disk import DiskWaits
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.process_tracer import CLOSE_WITHIN_S, open_tracer
from sluice.telemetry.traces.tracer import OFF, Tracer
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import learner_pb2
from sluice.weights.streams import WeightStreams

log = structlog.get_logger(__name__)

SERVICE_NAME = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name

SERVICE_ID = "learner"
"""Unless the options give an id: there is one learner a run; a new process under this name replaces the former process."""


class ControlPlane:
    """Rank 0's registration and server; the training side calls the run through `coordinator`."""

    def __init__(self, options: ServiceOptions, *, disk: DiskWaits | None = None) -> None:
        """`disk` has the learner's writers that wait for room, for `sluice status`."""
        self._options, self._disk = options, disk or DiskWaits(clock=SystemClock())
        self._thread = ControlThread()
        self._exporter = Exporter(service="learner")
        self._server: RpcServer | None = None
        self._streams: WeightStreams | None = None
        self.publisher: PublisherState | None = None
        """What this learner publishes; to be set before `open`."""
        self._leaving: asyncio.Task[None] | None = None
        self._record = TrainingRecord()
        self._identity = ModelIdentity(model_hash="", tokenizer_hash="")
        self.device, self.gpus = "", pb.Gpus()
        """Of rank 0, and of all ranks; to be set before `open`."""
        self.tracer: Tracer = OFF
        """Of this process; set by `trace`."""
        self._membership = Membership(options, describe=self._describe, beat=self._beat, name=SERVICE_ID)
        self.coordinator = CoordinatorLink(self._thread, self._membership.registration, show=self._exporter.set)

    def trace(self, config: Config) -> None:
        """Keeps traces from now on, where the configuration asks for traces; to be called before `open`. Raises ConfigError."""
        registration = self._membership.registration
        self.tracer = open_tracer(
            config,
            service="learner",
            instance=self._membership.service_id,
            run=registration.run_name,
            run_dir=registration.run_dir,
            exporter=self._exporter,
        )
        if self.tracer.on:
            registration.trace()

    def open(
        self,
        config: Config,
        record: TrainingRecord,
        *,
        add_servicer: Callable[[grpc.aio.Server], None],
    ) -> None:
        """Serves and registers this learner. The publisher must hold a snapshot already."""
        self._record, self._identity = record, model_identity(config.model.path)
        self.coordinator.vocabulary = vocabulary_size(config.model.path)
        metrics_port = None
        if config.network.metrics:
            metrics_port = self._exporter.serve(
                bind=self._options.bind, port=self._options.metrics_port, guard=MetricsGate(self._options.credentials)
            )
        port = self._thread.call(self._serve(add_servicer, calls_per_s=config.network.max_calls_per_s))
        log.info("serving", address=joined(self._options.bind, port), metrics_port=metrics_port)
        self._membership.serves(port=port, metrics_port=metrics_port)
        self._thread.call(self._membership.registration.register(), meanwhile=self.coordinator.meanwhile)
        self._thread.keep(self._membership.registration.keep_alive())

    def stop(self) -> None:
        """Asks the training side to end after the step under way, and tells the coordinator at once that this learner leaves:
        a step that does not end within the grace time is abandoned. Safe in a signal handler.
        """
        assert self.publisher is not None
        self.publisher.stop()
        self.coordinator.wake()
        self._thread.soon(self._say_that_it_leaves)

    def leave(self) -> None:
        """Tells the coordinator that this learner ends as it should, so that its end is no death on the batch that it holds,
        and so that the coordinator of an ended run waits no longer.
        """
        assert self.publisher is not None
        self.publisher.stop()
        self._thread.call(self._membership.leave())

    def close(self, *, grace_s: float) -> None:
        """Ends server and connections; running calls get `grace_s`."""
        self._thread.close(lambda: self._end(grace_s))
        self.tracer.close(within_s=CLOSE_WITHIN_S)
        self._exporter.close()

    def _say_that_it_leaves(self) -> None:
        if self._membership.registration.registered is not None and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._membership.leave())

    async def _serve(self, add_servicer: Callable[[grpc.aio.Server], None], *, calls_per_s: float) -> int:
        assert self.publisher is not None
        links = self.publisher.sender.links
        streams = self._streams = None if links is None else WeightStreams(links.offered)

        def register(server: grpc.aio.Server) -> None:
            add_servicer(server)
            if streams is not None:
                streams.add_to(server)

        self._server = make_server(
            register,
            services=[SERVICE_NAME] if streams is None else [SERVICE_NAME, streams.name],
            credentials=self._options.credentials,
            calls_per_s=calls_per_s,
            exporter=self._exporter,
            tracer=self.tracer,
        )
        port = await self._server.start(bind=self._options.bind, port=self._options.port)
        if links is not None:
            links.rpc_port = port
        return port

    async def _end(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s=grace_s)
        if self._streams is not None:
            self._streams.close()
        await self._membership.registration.close()

    def _describe(self) -> pb.RegisterRequest:
        assert self.publisher is not None
        version = self.publisher.newest.manifest.version  # read first: the record is written before the version
        return pb.RegisterRequest(
            role=pb.SERVICE_ROLE_LEARNER,
            model_hash=self._identity.model_hash,
            tokenizer_hash=self._identity.tokenizer_hash,
            engine=f"torch {torch.__version__}",
            device=self.device,
            gpus=self.gpus,
            capacity=1,
            version=version_to_proto(version),
            trained=[trained_to_wire(batch) for batch in self._record.stated if batch.step < version.number],
        )

    def _beat(self) -> pb.HeartbeatRequest:
        assert self.publisher is not None
        return pb.HeartbeatRequest(
            version=version_to_proto(self.publisher.newest.manifest.version),
            draining=self.publisher.stopping,
            waits_for="; ".join(map(str, self._disk.now())),
        )
