"""Brings one version to one rollout: finds a source, has both ends meet, and goes to another source if need be.

The rollout keeps what it has verified, so with another source it goes on at the bucket that it lacks. A failure of the
learner, or of the rollout itself, is raised; that of a relay never is.

 who waits          for what         unblocked by
 a rollout's task   a source         sources.py
 a rollout's task   the transfer     the rollout's answer, a source that holds it up (blame.py), the transfer's deadline
"""

import asyncio
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

import structlog

from services.coordinator.state.member import Member
from services.coordinator.state.run_context import RunContext
from services.coordinator.weights.blame import Blame
from services.coordinator.weights.push_calls import PushClients
from services.coordinator.weights.push_limits import PushLimits, files_bytes
from services.coordinator.weights.sources import Round, Source, Sources
from services.coordinator.wire.clients import as_sluice_errors
from sluice.errors import NotReady, SluiceError
from sluice.rpc.policy_versions import version_to_proto
from sluice.v1 import learner_pb2, rollout_pb2
from sluice.weights.payload import DIGEST_BYTES

log = structlog.get_logger(__name__)

MOST_SOURCES: Final = 5
"""Sources of one push, the learner last. Chosen: four of a chain may fail one after the other."""


@dataclass(kw_only=True, slots=True)
class Epoch:
    """A rollout's transfer group; valid for one process of its source."""

    name: str = ""
    source: str = ""
    encoding: str = ""
    """How the version that was opened last travels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Brought:
    """A version that a rollout has applied, by its own account."""

    opened: learner_pb2.OpenTransferResponse
    applied: rollout_pb2.ApplyWeightsResponse
    source: Member
    links: int
    """Links between the learner and the rollout."""
    changes: int
    """How often the source was changed on the way."""


class Transfers:
    """The transfers of a run."""

    def __init__(
        self, run: RunContext, clients: PushClients, *, sources: Sources, blame: Blame, finish_s: float | None
    ) -> None:
        """Rollouts let running samples end for `finish_s` before they apply a version; None: they do not wait."""
        self._fleet, self._clock = run.fleet, run.clock
        self._clients, self._sources, self._blame, self._finish_s = clients, sources, blame, finish_s
        self._timeout_s = run.config.weights.timeout_s
        self._limits = PushLimits(timeout_s=self._timeout_s, model_bytes=files_bytes(run.config.model.path))

    async def bring(self, member: Member, learner: Member, epoch: Epoch) -> Brought:
        """Brings the learner's newest version. After a SluiceError the old version still serves."""
        entered, direct = self._sources.arrive(member, learner), False
        try:
            for number in range(MOST_SOURCES):
                source = await self._sources.find(member, entered, direct=direct or number == MOST_SOURCES - 1)
                opened = await self._opened(member, source, entered, epoch)
                if opened is None:
                    direct = True
                    continue
                try:
                    applied = await self._receive(member, source, entered, epoch.name, opened)
                    entered.ends(member, applied.receive_ms, buckets=len(opened.payload.bucket_digests) // DIGEST_BYTES)
                    return Brought(
                        opened=opened, applied=applied, source=source.member, links=source.links, changes=number
                    )
                except SluiceError as error:
                    epoch.name = ""
                    entered.pauses(member)
                    if not await self._blame.another_source_helps(member, source, entered, error):
                        raise
                    _say(member, source, error)
        except SluiceError:
            entered.forget(member)
            raise
        raise AssertionError("the last source is the learner, whose errors are raised")

    async def _opened(
        self, member: Member, source: Source, entered: Round, epoch: Epoch
    ) -> learner_pb2.OpenTransferResponse | None:
        """What the learner sends to the rollout, and where the rollout joins; None when a relay refuses."""
        if not epoch.name or epoch.source != source.member.incarnation:
            epoch.name = f"{member.service_id}.{secrets.token_hex(6)}"
            epoch.source = source.member.incarnation
        epoch.encoding = ""
        try:
            with as_sluice_errors(source.member):
                opened = await (self._ask_learner if source.offer is None else self._ask_relay)(member, source, epoch)
            epoch.encoding = opened.payload.encoding
            return opened
        except SluiceError as error:
            epoch.name = ""
            if source.offer is None:
                raise
            _say(member, source, error)
            if not isinstance(error, NotReady):  # not ready: it has gone on to another version, which is nobody's fault
                self._sources.doubt(source.member, entered)
            return None

    async def _ask_learner(self, member: Member, source: Source, epoch: Epoch) -> learner_pb2.OpenTransferResponse:
        request = learner_pb2.OpenTransferRequest(
            rollout_id=member.service_id,
            epoch=epoch.name,
            timeout_s=self._timeout_s,
            receiver_device=member.device,
            held=version_to_proto(member.base[0]) if member.base else None,
            held_digest=member.base[1] if member.base else "",
        )
        return await self._clients.learner(source.member).OpenTransfer(request, timeout=self._limits.opening_s())

    async def _ask_relay(self, member: Member, source: Source, epoch: Epoch) -> learner_pb2.OpenTransferResponse:
        assert source.offer is not None
        request = rollout_pb2.RolloutServiceOpenTransferRequest(
            receiver_id=member.service_id,
            epoch=epoch.name,
            timeout_s=self._timeout_s,
            receiver_device=member.device,
            payload_id=source.offer.payload_id,
        )
        relay = self._clients.rollout(source.member)
        return source.offer.through(await relay.OpenTransfer(request, timeout=self._timeout_s))

    async def _receive(
        self, member: Member, source: Source, entered: Round, epoch: str, opened: learner_pb2.OpenTransferResponse
    ) -> rollout_pb2.ApplyWeightsResponse:
        rollout, limit, manifest = self._clients.rollout(member), self._timeout_s, opened.manifest
        member.granted = max(member.granted, manifest.version.number)
        member.lineages.add(manifest.version.lineage)
        with as_sluice_errors(member):
            if opened.new_epoch and opened.backend != "file":
                join = rollout_pb2.JoinEpochRequest(
                    epoch=epoch,
                    store_host=opened.store_host,
                    store_port=opened.store_port,
                    secret=opened.secret,
                    backend=opened.backend,
                    rank=1,
                    world_size=2,
                    timeout_s=limit,
                    source_role="learner" if source.offer is None else "rollout",
                )
                await rollout.JoinEpoch(join, timeout=self._limits.joining_s(opened.backend))
            receive = rollout_pb2.ReceiveWeightsRequest(
                epoch=epoch, manifest=manifest, payload=opened.payload, file_path=opened.file_path
            )
            await rollout.ReceiveWeights(receive, timeout=limit)
            entered.begins(member, opened, source=source, now_s=self._clock.now())
            arriving_s = self._limits.arriving_s(manifest.total_bytes)
            applying_s = self._limits.applying_s(manifest.total_bytes, finish_s=self._finish_s or 0.0)
            apply = rollout_pb2.ApplyWeightsRequest(version=manifest.version, timeout_s=arriving_s)
            member.finishing = self._finish_s is not None
            try:
                answer = rollout.ApplyWeights(apply, timeout=applying_s)
                if source.offer is None:
                    return await answer
                return await self._watched(answer, member, source, entered)
            finally:
                member.finishing = False
                self._fleet.changed.notify()

    async def _watched(
        self, answer: Awaitable[rollout_pb2.ApplyWeightsResponse], member: Member, source: Source, entered: Round
    ) -> rollout_pb2.ApplyWeightsResponse:
        """The answer. Raises what the watch raises while there is no answer."""
        answered = asyncio.ensure_future(answer)
        watch = asyncio.ensure_future(self._blame.watch(member, source, entered))
        try:
            await asyncio.wait([answered, watch], return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                watch.result()  # raises unless there is nothing left to watch
            return await answered
        finally:
            answered.cancel()
            watch.cancel()
            await asyncio.wait([answered, watch])
            for ended in (answered, watch):
                if not ended.cancelled():
                    ended.exception()  # has been looked at, or says nothing new


def _say(member: Member, source: Source, error: SluiceError) -> None:
    log.warning(
        "weights_source_changed",
        service_id=member.service_id,
        source=source.member.service_id,
        reason=str(error),
    )
