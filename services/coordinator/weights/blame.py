"""Who is at fault when a rollout does not get what a relay should send: looks at both ends, and what follows from the looks.

who waits                  for what                      unblocked by
the watch of a transfer    the next look                 the clock, the transfer's end
a look                     the answers of both ends      their answers, a quarter of weights.timeout_s
"""

import asyncio
from collections.abc import Callable
from typing import Final

from services.coordinator.state.member import Member
from services.coordinator.weights.link_watch import Look, is_broken, is_slow
from services.coordinator.weights.push_calls import PushClients
from services.coordinator.weights.sources import Round, Source, Sources
from services.coordinator.wire.clients import as_sluice_errors
from sluice.clock import Clock
from sluice.errors import Expired, SluiceError, TransferError, WrongBytes
from sluice.v1 import rollout_pb2

LOOKS: Final = 4
"""Looks at a transfer within `weights.timeout_s`."""


class SilentSource(Expired):
    """A transfer was given up because its source does not answer."""


class SlowSource(Expired):
    """A transfer was given up because its source is slow."""


class Blame:
    """Looks at transfers from relays and decides who is to be in doubt."""

    def __init__(
        self,
        clients: PushClients,
        clock: Clock,
        *,
        sources: Sources,
        condemn: Callable[[Member, SluiceError], None],
        timeout_s: float,
    ) -> None:
        """`condemn` quarantines a source whose bytes were wrong; `timeout_s` is the limit of a transfer's operation."""
        self._clients, self._clock, self._sources, self._condemn = clients, clock, sources, condemn
        self._look_s = timeout_s / LOOKS

    async def watch(self, member: Member, source: Source, entered: Round) -> None:
        """Returns when the rollout has all buckets, or when no source would be faster. Raises SilentSource or SlowSource."""
        before, silent = None, 0
        while not entered.is_slow_itself(member):
            await self._clock.sleep(self._look_s)
            receiver, sender = await self._look(member, source.member)
            if receiver is not None and _is_whole(receiver):
                return
            silent = silent + 1 if sender is None else 0
            if silent == 2:
                raise SilentSource(f"{source.member.service_id} has not answered for {2 * self._look_s:g} s")
            if receiver is None or sender is None or receiver.payload_id != sender.payload_id:
                continue
            look = Look(at_s=self._clock.now(), source=sender.verified_buckets, receiver=receiver.verified_buckets)
            if before and is_slow(before, look, source_per_s=entered.buckets_per_s(source.member, look)):
                raise SlowSource(f"{source.member.service_id} has {look.source} buckets, and sent {look.receiver}")
            before = look

    async def another_source_helps(self, member: Member, source: Source, entered: Round, error: SluiceError) -> bool:
        """Whether a failed transfer may go on with another source; puts in doubt who is to blame."""
        if member.gone.is_set() or not isinstance(error, TransferError | Expired):
            return False
        if isinstance(error, WrongBytes):
            return self._accuse(member, source, entered, error)
        if source.offer is None:
            return False
        if isinstance(error, SlowSource):
            self._sources.is_slow(member, source.member, entered)
            return True
        receiver, sender = await self._look(member, source.member)
        if receiver is None or _is_whole(receiver):
            return False
        if sender is None or is_broken(_ends(receiver, sender)):
            self._sources.doubt(source.member, entered)
        return True

    def _accuse(self, member: Member, source: Source, entered: Round, error: WrongBytes) -> bool:
        """Quarantines a relay; but who finds the learner or a second relay wrong is wrong itself, and the first relay is
        believed again."""
        accused, relay = entered.accused.setdefault(member.service_id, {}), source.member
        if source.offer is None or accused.keys() - {relay.service_id}:
            self._sources.trust(accused.values(), entered)
            return False
        accused[relay.service_id] = relay
        self._sources.doubt(relay, entered, for_good=True)
        self._condemn(relay, TransferError(f"{relay.service_id} sent wrong bytes to {error.reason}"))
        return True

    async def _look(
        self, member: Member, source: Member
    ) -> tuple[rollout_pb2.RolloutServiceGetInfoResponse | None, rollout_pb2.RolloutServiceGetInfoResponse | None]:
        return await asyncio.gather(self._progress(member), self._progress(source))

    async def _progress(self, member: Member) -> rollout_pb2.RolloutServiceGetInfoResponse | None:
        """How far a rollout is; None when it does not say in time."""
        try:
            with as_sluice_errors(member):
                return await self._clients.rollout(member).GetInfo(
                    rollout_pb2.RolloutServiceGetInfoRequest(), timeout=self._look_s
                )
        except SluiceError:
            return None


def _is_whole(info: rollout_pb2.RolloutServiceGetInfoResponse) -> bool:
    return 0 < info.buckets == info.verified_buckets


def _ends(
    receiver: rollout_pb2.RolloutServiceGetInfoResponse, sender: rollout_pb2.RolloutServiceGetInfoResponse
) -> Look:
    """Both ends of a link that has ended; a receiver that did not come to begin has nothing."""
    began = receiver.payload_id == sender.payload_id
    return Look(at_s=0.0, source=sender.verified_buckets, receiver=receiver.verified_buckets if began else 0)
