"""Keeps every rollout on the newest version: has the version brought there (transfer.py), checked, and put to work.

One task a rollout; no task waits for another. A push that fails in any way ends the rollout's epoch: the rollout is
quarantined and synced again under a fresh epoch, while all other rollouts go on. A late rollout skips to the newest version.
The learner hears which version the rollout has acknowledged, and may then send what has changed; after a failure it does not
hear that, and sends the version whole.

 who waits          for what                                             unblocked by
 a rollout's task   a newer version                                      commits, registrations
 a rollout's task   the end of an evaluation that pins the rollout       the evaluation, eval.timeout_s
 a rollout's task   the transfer                                         the rollout's answer, the transfer's deadline
"""

import asyncio
from typing import Protocol

import structlog

from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.push_times import PushTime, PushTimes
from services.coordinator.state.run_context import RunContext
from services.coordinator.weights.blame import Blame
from services.coordinator.weights.push_calls import PushClients
from services.coordinator.weights.sources import Sources
from services.coordinator.weights.transfer import Epoch, Transfers
from services.coordinator.wire.answers import durations_of
from sluice.errors import SluiceError, TransferError, Unavailable
from sluice.policy_version import PolicyVersion
from sluice.rpc.policy_versions import version_from_proto
from sluice.telemetry.traces.context import new_trace
from sluice.v1 import learner_pb2

log = structlog.get_logger(__name__)

RETRY_PAUSE_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses after consecutive failures of one rollout; the last pause repeats."""


class VersionCheck(Protocol):
    """The check of whether a rollout serves the version that it has applied (prober.py)."""

    async def check(self, member: Member, version: PolicyVersion) -> list[Member]: ...


class WeightPush:
    """The weight pushes of a run."""

    def __init__(self, run: RunContext, clients: PushClients, *, times: PushTimes, prober: VersionCheck | None) -> None:
        """Without a `prober` a rollout is READY when it has applied a version."""
        self._fleet, self._events, self._clock = run.fleet, run.events, run.clock
        self._times, self._prober = times, prober
        self._tracer, self._steps = run.tracer, run.steps
        weights = run.config.weights
        sources = Sources(
            run.fleet,
            run.clock,
            relay=weights.relay == "auto" and weights.backend != "file",
            by_held=weights.delta_share > 0,
            maps=weights.inflight != "finish",  # there a push lasts as long as the running samples
        )
        blame = Blame(clients, run.clock, sources=sources, condemn=self._quarantine, timeout_s=weights.timeout_s)
        finish_s = run.config.coordinator.generate_timeout_s if weights.inflight == "finish" else None
        self._transfers = Transfers(run, clients, sources=sources, blame=blame, finish_s=finish_s)

    async def run(self) -> None:
        """Serves every rollout that registers, until cancelled."""
        served: set[Member] = set()  # members, not processes: a lost process that registers again is a new member
        async with asyncio.TaskGroup() as tasks:
            while True:
                served = {member for member in served if not member.gone.is_set()}
                for member in self._fleet.of(Role.ROLLOUT, state=None):
                    if member not in served:
                        served.add(member)
                        tasks.create_task(self._keep_current(member), name=f"push-{member.service_id}")
                await self._fleet.roster.wait()

    async def _keep_current(self, member: Member) -> None:
        epoch, failures = Epoch(), 0
        while not member.gone.is_set():
            learner = self._fleet.learner
            if learner is None or not _is_behind(member, learner) or member.state is State.DRAINING:
                await self._fleet.roster.wait()
                continue
            try:
                async with member.weights:
                    await self._traced_push(member, learner, epoch)
                failures = 0
            except SluiceError as error:
                epoch.name = member.digest = ""
                member.deltas_failed += epoch.encoding == "delta"
                if member.gone.is_set():
                    return
                self._quarantine(member, error)
                await self._clock.sleep(RETRY_PAUSE_S[min(failures, len(RETRY_PAUSE_S) - 1)])
                failures += 1

    async def _traced_push(self, member: Member, learner: Member, epoch: Epoch) -> None:
        """`_push` as a trace of its own, with a link to the step that made the version."""
        version = -1 if learner.version is None else learner.version.number
        step = self._steps.of(version)
        attributes = {"sluice.rollout": member.service_id, "sluice.policy.version": version}
        place = new_trace() if self._tracer.on else None
        links = () if step is None else (step,)
        with self._tracer.span("rl.sync", place, attributes=attributes, links=links) as noted:
            time = await self._push(member, learner, epoch)
            noted["sluice.source"] = member.source
            noted["sluice.encoding"] = time.encoding or "file"
            noted["sluice.sent_bytes"] = time.sent_bytes

    async def _push(self, member: Member, learner: Member, epoch: Epoch) -> PushTime:
        """Pushes one version to one rollout. After a SluiceError the old version still serves."""
        started = self._clock.now()
        if member.version is None and not member.pauses:
            self._fleet.set_state(member, State.SYNCING)
        brought = await self._transfers.bring(member, learner, epoch)
        manifest, applied = brought.opened.manifest, brought.applied
        if applied.digest != manifest.digest or applied.version != manifest.version:
            raise TransferError(
                f"{member.service_id} applied {applied.version.number} with digest {applied.digest[:12]}, the learner "
                f"published {manifest.version.number} with {manifest.digest[:12]}"
            )
        receive_ms, stall_ms = durations_of(member, applied)
        version = version_from_proto(manifest.version)
        if self._prober is not None and member.state in (State.SYNCING, State.QUARANTINED):
            for odd in await self._prober.check(member, version):
                self._quarantine(odd, TransferError(f"its probe is not that of most, of {member.service_id} for one"))
        member.version, member.digest = version, applied.digest
        time = PushTime(
            push_ms=(self._clock.now() - started) * 1e3,
            receive_ms=receive_ms,
            stall_ms=stall_ms,
            links=brought.links,
            source_changes=brought.changes,
            encoding=brought.opened.payload.encoding,
            sent_bytes=_sent_bytes(brought.opened),
            dense_bytes=manifest.total_bytes,
        )
        member.source, member.push_ms = brought.source.service_id, time.push_ms
        member.received_bytes_per_s = 1e3 * time.sent_bytes / max(receive_ms, 1e-3)
        member.travelled(time.encoding, sent_bytes=time.sent_bytes)
        self._times.add(time)
        self._announce(member, time)
        return time

    def _quarantine(self, member: Member, error: SluiceError) -> None:
        log.warning("weight_push_failed", service_id=member.service_id, reason=str(error))
        learner = self._fleet.learner
        if learner is None or learner.gone.is_set() or isinstance(error, Unavailable):
            return  # not the rollout's fault: the rollout goes on with its version
        self._fleet.set_state(member, State.QUARANTINED, str(error))
        self._events.emit("service_quarantined", str(error), labels={"service_id": member.service_id})

    def _announce(self, member: Member, time: PushTime) -> None:
        assert member.version is not None
        newly = member.state is not State.READY and not member.pauses
        if member.state is not State.DRAINING and not member.pauses:
            self._fleet.set_state(member, State.READY)
        labels = {"service_id": member.service_id, "lineage": member.version.lineage}
        values = {"version": float(member.version.number), "push_ms": time.push_ms, "stall_ms": time.stall_ms}
        values |= {"sent_bytes": float(time.sent_bytes), "dense_bytes": float(time.dense_bytes)}
        self._events.emit(
            "weights_pushed", f"{member.service_id} holds version {member.version.number}", values=values, labels=labels
        )
        if newly:
            self._events.emit("service_ready", f"{member.service_id} is ready", labels=labels)


def _is_behind(member: Member, learner: Member) -> bool:
    newest: PolicyVersion | None = learner.version
    if newest is None:
        return False
    if member.version is None or newest.number > member.version.number:
        return True
    return member.state is State.QUARANTINED and not member.pauses and newest.number == member.version.number


def _sent_bytes(opened: learner_pb2.OpenTransferResponse) -> int:
    """What travels; a file travels whole, as does what a learner describes without a payload."""
    return opened.payload.total_bytes if opened.HasField("payload") else opened.manifest.total_bytes
