"""Puts one rank of the learner together and runs the rank.

Order: the coordinator's configuration, the model, the checkpoint to resume from, the snapshot of its version. Only then
rank 0 serves and registers, so that nobody can ask for weights before they exist. Then the loop of loop.py runs. rank_worker.py
puts together what trains, gathers and saves.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import torch

from services.learner.checkpoint.export import export_version
from services.learner.checkpoint.exports import BackgroundExports
from services.learner.checkpoint.training_record import TrainingRecord
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.control.plane import ControlPlane
from services.learner.control.publisher_state import PublisherState
from services.learner.control.servicer import LearnerServicer
from services.learner.distributed.rank_environment import cpu_threads
from services.learner.distributed.ranks import Ranks, join_ranks, naming_lost_ranks
from services.learner.distributed.shared_folders import check_shared_folders
from services.learner.loop import Leader, follow
from services.learner.policy.lora import export_adapter
from services.learner.publishing import Publishing
from services.learner.rank_worker import Worker
from sluice.accelerator import identity, model_of_gpu
from sluice.clock import SystemClock
from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.interfaces import prefer_for_nccl, with_addresses
from sluice.lineage import LINEAGES_FILE, LineageBook, Rollback
from sluice.nccl import settings_to_mend
from sluice.policy_version import PolicyVersion
from sluice.rpc.gpus import gpus_message
from sluice.rpc.service import ServiceOptions
from sluice.run_dir.full_disk import DiskWaits
from sluice.v1.learner_pb2_grpc import add_LearnerServiceServicer_to_server
from sluice.weights.carrier import Backend, settled_backend
from sluice.weights.deltas import Deltas, threads_beside
from sluice.weights.sender import WeightSender

log = structlog.get_logger(__name__)

_EXIT_GRACE_S = 2.0
"""The time that running calls get when the learner leaves."""


def run(options: ServiceOptions) -> bool:
    """Runs one rank until the run has ended (True) or the process is asked to stop (False).

    Raises SluiceError: the coordinator stays away or refuses, another learner took over, a rank was lost, or training
    broke down.
    """
    prefer_for_nccl(options.advertise)
    with naming_lost_ranks():
        ranks = join_ranks()
        if ranks.device.type == "cuda":
            for line in settings_to_mend(os.environ, interfaces=with_addresses()):
                log.warning("nccl_setting", rank=ranks.rank, problem=line)
        if ranks.leads:
            disk = DiskWaits(clock=SystemClock())
            control = ControlPlane(options, disk=disk)
            try:
                ended = _lead(ranks, control, options, disk)
                control.leave()
            finally:
                control.close(grace_s=_EXIT_GRACE_S)
        else:
            ended = _follow(ranks)
        ranks.leave()
    return ended


def _lead(ranks: Ranks, control: ControlPlane, options: ServiceOptions, disk: DiskWaits) -> bool:
    config_yaml, run_dir, rollbacks = control.coordinator.run_facts()
    config = parse_config(config_yaml, where="the coordinator's configuration")
    control.trace(config)
    backend = settled_backend(config, bind=options.bind, credentials=options.credentials)
    config, worker, state = make_worker(ranks, facts=(config_yaml, run_dir), rollbacks=rollbacks)
    snapshot = worker.gather(_version(state))
    assert snapshot is not None
    publisher = _publisher(ranks, config, backend, options, Path(run_dir))
    publisher.publish(snapshot)
    control.publisher = publisher
    control.coordinator.meanwhile = worker.command
    control.device, control.gpus = identity(), gpus_message(model_of_gpu(), count=ranks.size)
    _on_signal(control.stop, grace_s=config.launch.grace_s)
    servicer = LearnerServicer(publisher, config=config, run_dir=Path(run_dir), wake=control.coordinator.wake)
    record = TrainingRecord(state.trained)
    control.open(config, record, add_servicer=partial(add_LearnerServiceServicer_to_server, servicer))
    exports = BackgroundExports(config=config, directory=Path(run_dir) / "exports")
    leader = Leader(
        worker=worker,
        coordinator=control.coordinator,
        publisher=publisher,
        publishing=Publishing(
            coordinator=control.coordinator,
            publisher=publisher,
            lineages=LineageBook(Path(run_dir) / LINEAGES_FILE),
            record=record,
            lineage=state.lineage,
            snapshot=snapshot,
            export=exports.offer,
            disk=disk,
        ),
        record=record,
        checkpoint_every_steps=config.learner.checkpoint_every_steps,
        tracer=control.tracer,
    )
    try:
        ended = leader.run()
    finally:
        worker.close()
    exports.close()
    if ended:
        target = Path(run_dir) / "model"
        disk.write_blocking(export_version, leader.snapshot, config=config, target=target)
        log.info("exported", path=str(target), version=str(leader.snapshot.manifest.version))
        if worker.adapters is not None:
            target = Path(run_dir) / "adapter"
            disk.write_blocking(export_adapter, worker.adapters, config=config, target=target)
    publisher.sender.close()
    return ended


def _follow(ranks: Ranks) -> bool:
    config, worker, state = make_worker(ranks, facts=())
    _on_signal(lambda: None, grace_s=config.launch.grace_s)  # the leader says when to stop
    worker.gather(_version(state))
    try:
        return follow(worker)
    finally:
        worker.close()


def make_worker(
    ranks: Ranks, *, facts: tuple[str, ...], rollbacks: Sequence[Rollback] = ()
) -> tuple[Config, Worker, CheckpointState]:
    """Each rank's share of the model at the version to start from; followers give no facts and no rollbacks."""
    config_yaml, run_dir = ranks.share_texts(facts)
    config = parse_config(config_yaml, where="the coordinator's configuration")
    torch.set_num_threads(cpu_threads(config, on_cuda=ranks.device.type == "cuda"))
    torch.manual_seed(config.run.seed)
    check_shared_folders(ranks, run_dir=Path(run_dir), model_path=config.model.path)
    began_s = time.monotonic()
    worker = Worker(config=config, ranks=ranks, run_dir=Path(run_dir))
    model_s = time.monotonic() - began_s
    state = worker.restore(rollbacks)
    if ranks.leads:
        took = {"model_s": round(model_s, 3), "checkpoint_s": round(time.monotonic() - began_s - model_s, 3)}
        log.info("model_ready", path=config.model.path, version=str(_version(state)), ranks=ranks.size, **took)
    return config, worker, state


def _version(state: CheckpointState) -> PolicyVersion:
    return PolicyVersion(lineage=state.lineage, number=state.step)


def _publisher(
    ranks: Ranks, config: Config, backend: Backend, options: ServiceOptions, run_dir: Path
) -> PublisherState:
    log.info("weights_sent_by", backend=backend)
    sender = WeightSender(
        backend=backend,
        device=identity(),
        host=options.advertise,
        bind=options.bind,
        directory=run_dir / "weights",
        deltas=_deltas(config, on_cuda=ranks.device.type == "cuda"),
    )
    return PublisherState(sender, world_size=ranks.size, backend=ranks.backend)


def _deltas(config: Config, *, on_cuda: bool) -> Deltas | None:
    share = config.weights.delta_share
    return Deltas(most_share=share, threads=threads_beside(on_cuda=on_cuda)) if share else None


def _on_signal(stop: Callable[[], object], *, grace_s: float) -> None:
    """SIGTERM or SIGINT calls `stop`; further signals change nothing, because torchrun repeats signals to every rank.

    A step under way that takes longer than the grace time is abandoned: the last checkpoint stands, and the process leaves.
    """
    signals = (signal.SIGTERM, signal.SIGINT)

    def handle(_: int, __: FrameType | None) -> None:
        for signum in signals:
            signal.signal(signum, signal.SIG_IGN)
        stop()
        watch = threading.Timer(0.8 * grace_s, _abandon)
        watch.daemon = True
        watch.start()

    for signum in signals:
        signal.signal(signum, handle)


def _abandon() -> None:
    log.warning("step_abandoned", reason="the step under way did not end within the grace time")
    os._exit(0)
