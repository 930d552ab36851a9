"""Rank 0's other half: registration, the gRPC server and the calls to the coordinator, in a thread of their own.

Blocking on the training side (`Coordinator` of ports.py), asynchronous inside.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import structlog
import torch

from services.learner.batches.batch import Batch
from services.learner.control.link import CoordinatorLink, RawBatch
from services.learner.control.publisher_state import PublisherState
from services.learner.control.record import TrainingRecord
from services.learner.control.thread import ControlThread
from services.learner.control.wire import batch_from_wire, trained_to_wire
from services.learner.ports import NoBatch
from sluice import PROTOCOL_VERSION
from sluice.config.schema import Config
from sluice.lineage import Rollback
from sluice.model_identity import ModelIdentity, model_identity
from sluice.policy_version import PolicyVersion
from sluice.rpc.policy_versions import version_to_proto
from sluice.rpc.registration import Registration
from sluice.rpc.server import RpcServer, make_server
from sluice.rpc.service import ServiceOptions
from sluice.telemetry.prometheus import Exporter
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import learner_pb2

log = structlog.get_logger(__name__)

SERVICE_NAME = learner_pb2.DESCRIPTOR.services_by_name["LearnerService"].full_name

SERVICE_ID = "learner"
"""Unless told otherwise: there is one a run; a new process under this name replaces the former one."""

_FAREWELL_TIMEOUT_S = 2.0


class ControlPlane:
    """One process's standing in the run."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._thread = ControlThread()
        self._incarnation = uuid.uuid4().hex
        self._exporter = Exporter(service="learner")
        self._server: RpcServer | None = None
        self._metrics_address = ""
        self._publisher: PublisherState | None = None
        self._record = TrainingRecord()
        self._identity = ModelIdentity(model_hash="", tokenizer_hash="")
        self._link: CoordinatorLink = self._thread.call(self._connect())

    def run_facts(self) -> tuple[str, str, Sequence[Rollback]]:
        """The run's configuration as YAML, its directory and its rollbacks, oldest first; waits for the coordinator."""
        return self._thread.call(self._link.run_facts())

    def open(
        self,
        config: Config,
        publisher: PublisherState,
        record: TrainingRecord,
        *,
        add_servicer: Callable[[grpc.aio.Server], None],
    ) -> None:
        """Serves and registers: from now on others see this learner. The publisher must hold a snapshot already."""
        self._publisher, self._record, self._identity = publisher, record, model_identity(config.model.path)
        if config.network.metrics:
            port = self._exporter.serve(bind=self._options.bind, port=self._options.metrics_port)
            self._metrics_address = f"{self._options.advertise}:{port}"
        self._thread.call(self._serve(add_servicer, calls_per_s=config.network.max_calls_per_s))
        self._thread.call(self._link.registration.register())
        self._thread.keep(self._link.registration.keep_alive())

    # --- Coordinator of ports.py -----------------------------------------------------------------------------

    def batch(self, step: int) -> Batch | NoBatch:
        """Coordinator.batch. Raises InvalidRequest when the batch could not be trained correctly."""
        found = self._thread.call(self._link.batch(step))
        return batch_from_wire(found.header, found.groups) if isinstance(found, RawBatch) else found

    def commit_step(
        self, batch: Batch, *, version: PolicyVersion, weights_digest: str, metrics: Mapping[str, float]
    ) -> str:
        """Coordinator.commit_step."""
        self._exporter.set(metrics)
        return self._thread.call(
            self._link.commit_step(
                batch.step,
                version=version,
                weights_digest=weights_digest,
                batch_digest=batch.digest,
                metrics=metrics,
            )
        )

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """Coordinator.commit_checkpoint."""
        self._thread.call(self._link.commit_checkpoint(version, path))

    # ---------------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Ends a wait for a batch. Safe from any thread and in a signal handler."""
        self._thread.soon(self._link.wake.set)

    def farewell(self) -> None:
        """Says that this learner has done all it had to for the run, so that the coordinator need not stay for it."""
        assert self._publisher is not None
        self._publisher.stop()
        self._thread.call(self._say_farewell())

    def close(self, *, grace_s: float) -> None:
        """Leaves: running calls get `grace_s`."""
        self._thread.close(lambda: self._leave(grace_s))
        self._exporter.close()

    async def _connect(self) -> CoordinatorLink:
        registration = Registration(
            coordinator=self._options.coordinator,
            describe=self._describe,
            beat=self._beat,
            credentials=self._options.credentials,
        )
        return CoordinatorLink(registration=registration)

    async def _serve(self, add_servicer: Callable[[grpc.aio.Server], None], *, calls_per_s: float) -> None:
        self._server = make_server(
            add_servicer,
            services=[SERVICE_NAME],
            credentials=self._options.credentials,
            calls_per_s=calls_per_s,
            exporter=self._exporter,
        )
        port = await self._server.start(bind=self._options.bind, port=self._options.port)
        log.info("serving", address=f"{self._options.bind}:{port}", metrics=self._metrics_address)

    async def _say_farewell(self) -> None:
        try:
            await self._link.registration.stub.Heartbeat(self._beat(), timeout=_FAREWELL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:  # it will notice by itself
            log.info("farewell_not_heard", code=error.code().name)

    async def _leave(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s=grace_s)
        await self._link.registration.close()

    def _describe(self) -> pb.RegisterRequest:
        assert self._publisher is not None
        assert self._server is not None
        version = self._publisher.newest.manifest.version  # read before the record, which is written before the version
        return pb.RegisterRequest(
            role=pb.SERVICE_ROLE_LEARNER,
            service_id=self._options.service_id or SERVICE_ID,
            address=f"{self._options.advertise}:{self._server.port}",
            protocol_version=PROTOCOL_VERSION,
            model_hash=self._identity.model_hash,
            tokenizer_hash=self._identity.tokenizer_hash,
            engine=f"torch {torch.__version__}",
            capacity=1,
            version=version_to_proto(version),
            incarnation=self._incarnation,
            metrics_address=self._metrics_address,
            trained=[trained_to_wire(batch) for batch in self._record.stated if batch.step < version.number],
        )

    def _beat(self) -> pb.HeartbeatRequest:
        assert self._publisher is not None
        return pb.HeartbeatRequest(
            service_id=self._options.service_id or SERVICE_ID,
            incarnation=self._incarnation,
            version=version_to_proto(self._publisher.newest.manifest.version),
            draining=self._publisher.stopping,
        )
