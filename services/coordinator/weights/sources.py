"""From whom each rollout gets the newest version while the version spreads: who has come, who has begun, who is in doubt.

A *round* is one version for rollouts that get the same payload: all of them, unless the payload depends on the version
that they hold. Who arrives in a round gets a source by the plan (plan.py), which later arrivals do not change. A rollout
may be a source as soon as it has begun to receive.

 who waits          for what                                   unblocked by
 a rollout's task   its source to begin to receive             the source's task: begun, failed, gone
 a rollout's task   its source to apply, where it maps the     the source's task: applied, failed, gone;
                    source's copy instead of receiving one     the time for it (`copy_comes_in_s`)
"""

import asyncio
import functools
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

from services.coordinator.state.fleet import Fleet
from services.coordinator.state.member import Member, State
from services.coordinator.state.signal import Signal
from services.coordinator.weights.link_watch import Look
from services.coordinator.weights.plan import Receiver, plan_sources
from sluice.clock import Clock
from sluice.errors import Unavailable
from sluice.policy_version import PolicyVersion
from sluice.v1 import learner_pb2, rollout_pb2
from sluice.weights.deadlines import transfer_s
from sluice.weights.wire import manifest_from_proto, payload_from_proto

DOUBT_S: Final = 300.0
"""How long a rollout that was slow or did not answer is nobody's source. Chosen: some pushes of a large model."""

PATIENCE_S: Final = 5.0
"""How much longer than it should take a rollout waits for a copy that it can map. Chosen: a load on a busy machine."""

PATIENCE_TIMES: Final = 4.0
"""How many times as long as its former push the push to the copy's holder may take."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the learner sends to some rollouts, whoever passes it on."""

    opened: learner_pb2.OpenTransferResponse
    """The learner's own words: nobody takes manifest and digests from a relay."""

    @functools.cached_property
    def payload_id(self) -> str:
        """The name of the payload."""
        return payload_from_proto(self.opened.payload, manifest_from_proto(self.opened.manifest)).id

    def through(self, relay: rollout_pb2.RolloutServiceOpenTransferResponse) -> learner_pb2.OpenTransferResponse:
        """The same from a relay."""
        return learner_pb2.OpenTransferResponse(
            manifest=self.opened.manifest,
            payload=self.opened.payload,
            store_host=relay.store_host,
            store_port=relay.store_port,
            secret=relay.secret,
            backend=relay.backend,
            new_epoch=relay.new_epoch,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who sends a rollout its payload."""

    member: Member
    offer: Offer | None
    """What is passed on; None where the learner sends."""
    links: int
    """Links between the learner and the rollout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    """A rollout that receives, or has received."""

    offer: Offer
    links: int
    at_s: float
    """When it began with this source. Clock: the coordinator's."""


@dataclass(kw_only=True, slots=True, eq=False)
class Round:
    """One version on its way to rollouts that held the same version."""

    learner: Member
    members: dict[str, Member] = field(default_factory=dict)
    begun: dict[str, _Begun] = field(default_factory=dict)
    """By name: those that have begun to receive."""
    per_s: dict[str, float] = field(default_factory=dict)
    """By name: the buckets a second of those that have all."""
    accused: dict[str, dict[str, Member]] = field(default_factory=dict)
    """By name of the receiver: the sources whose bytes it found wrong, by name."""
    slow: dict[str, set[str]] = field(default_factory=dict)
    """By name of the receiver: the sources that were slow for it."""
    planned: dict[str, str] | None = None
    changed: Signal = field(default_factory=Signal)

    def begins(self, member: Member, opened: learner_pb2.OpenTransferResponse, *, source: Source, now_s: float) -> None:
        """From now on others may receive from this rollout."""
        offer = source.offer or Offer(opened=opened)
        self.begun[member.service_id] = _Begun(offer=offer, links=source.links, at_s=now_s)
        self.per_s.pop(member.service_id, None)  # a rollout that begins anew has nothing whole
        self.changed.notify()

    def ends(self, member: Member, receive_ms: float, *, buckets: int) -> None:
        """Notes the rate at which the rollout got all buckets."""
        self.per_s[member.service_id] = 1e3 * buckets / max(receive_ms, 1e-3)
        self.changed.notify()

    def buckets_per_s(self, member: Member, look: Look) -> float:
        """The rate at which a source that has `look.source` buckets got them."""
        begun = self.begun.get(member.service_id)
        if (done := self.per_s.get(member.service_id)) is not None or begun is None:
            return done or 0.0
        return look.source / max(look.at_s - begun.at_s, 1e-3)

    def copy_comes_in_s(self, source: Member, now_s: float) -> float:
        """How much longer a rollout waits to map the copy of a source that has begun; 0 once the source has applied it."""
        if source.service_id in self.per_s:
            return 0.0
        begun = self.begun[source.service_id]
        should_s = PATIENCE_TIMES * source.push_ms / 1e3 or transfer_s(begun.offer.opened.manifest.total_bytes)
        return max(0.0, begun.at_s + should_s + PATIENCE_S - now_s)

    def is_slow_itself(self, member: Member) -> bool:
        """Whether the rollout was slow with two sources, so that a third would not help."""
        return len(self.slow.get(member.service_id, ())) > 1

    def pauses(self, member: Member) -> None:
        """Nobody new receives from this rollout until it has begun again."""
        self.begun.pop(member.service_id, None)

    def forget(self, member: Member) -> None:
        """The rollout has left the round; whoever waits for it gets another source."""
        if self.members.get(member.service_id) is member:
            del self.members[member.service_id]
            self.begun.pop(member.service_id, None)
            self.replan()

    def replan(self) -> None:
        """Has everybody who waits look for a source anew."""
        self.planned = None
        self.changed.notify()


class Sources:
    """The rounds of the newest version, and the plan of the rounds before."""

    def __init__(self, fleet: Fleet, clock: Clock, *, relay: bool, by_held: bool, maps: bool) -> None:
        """Without `relay` everybody gets everything from the learner; `by_held`: whether rollouts that hold different versions
        get different payloads; `maps`: whether rollouts of one memory wait for each other's copies."""
        self._fleet, self._clock, self._relay, self._by_held, self._maps = fleet, clock, relay, by_held, maps
        self._newest: tuple[str, PolicyVersion | None] = ("", None)
        """The learner's process and version that the rounds are for."""
        self._rounds: dict[Hashable, Round] = {}
        """By the version that the rollouts of a round hold, where payloads depend on it."""
        self._former: dict[str, str] = {}
        """The newest source of each rollout, by name."""
        self._in: dict[Member, Round] = {}

    def arrive(self, member: Member, learner: Member) -> Round:
        """The round that brings the rollout to the learner's version."""
        if (learner.incarnation, learner.version) != self._newest:
            self._newest, self._rounds = (learner.incarnation, learner.version), {}
            self._former = {name: source for name, source in self._former.items() if name in self._fleet.members}
            self._in = {each: entered for each, entered in self._in.items() if not each.gone.is_set()}
        held = member.base if self._by_held else None
        entered = self._rounds.setdefault(held, Round(learner=learner))
        entered.learner = learner  # a process that was lost for a moment is another member
        if (former := self._in.get(member)) is not None and former is not entered:
            former.forget(member)
        self._in[member] = entered
        entered.members[member.service_id] = member
        entered.begun.pop(member.service_id, None)
        entered.planned = None
        return entered

    async def find(self, member: Member, entered: Round, *, direct: bool = False) -> Source:
        """The rollout's source, once the source can serve; `direct`: the learner. Raises Unavailable for a lost rollout."""
        await asyncio.sleep(0)  # those whom the same version woke are planned for together
        while True:
            if member.gone.is_set():
                raise Unavailable(f"{member.service_id} at {member.address} is gone")
            name = entered.learner.service_id
            if self._relay and not direct:
                name = self._plan(entered).get(member.service_id, name)
            if (source := entered.members.get(name)) is None:
                return Source(member=entered.learner, offer=None, links=1)
            if (begun := entered.begun.get(name)) is not None:
                if not begun.offer.opened.HasField(
                    "payload"
                ):  # a learner that describes none: nobody could check a relay
                    return Source(member=entered.learner, offer=None, links=1)
                maps = self._maps and member.memory != "" and source.memory == member.memory
                wait_s = entered.copy_comes_in_s(source, self._clock.now()) if maps else 0.0
                if wait_s == 0.0:
                    return Source(member=source, offer=begun.offer, links=begun.links + 1)
                await self._changed(entered, within_s=wait_s)
            else:
                await entered.changed.wait()

    async def _changed(self, entered: Round, *, within_s: float) -> None:
        waits = [asyncio.ensure_future(wait) for wait in (entered.changed.wait(), self._clock.sleep(within_s))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def doubt(self, source: Member, entered: Round, *, for_good: bool = False) -> None:
        """Has nobody receive from this rollout for DOUBT_S, or for as long as its process lives."""
        source.relays_from_s = math.inf if for_good else max(source.relays_from_s, self._clock.now() + DOUBT_S)
        entered.replan()

    def trust(self, sources: Iterable[Member], entered: Round) -> None:
        """Believes sources again."""
        for source in sources:
            source.relays_from_s = 0.0
        entered.replan()

    def is_slow(self, member: Member, source: Member, entered: Round) -> None:
        """Notes that the source was slow for the rollout. When two were, the rollout is the slow one."""
        slow = entered.slow.setdefault(member.service_id, set())
        slow.add(source.service_id)
        if len(slow) == 1:
            self.doubt(source, entered)
            return
        wronged = [entered.members[name] for name in slow if name in entered.members]
        self.trust([source for source in wronged if source.relays_from_s < math.inf], entered)
        self.doubt(member, entered)

    def _plan(self, entered: Round) -> dict[str, str]:
        if entered.planned is None:
            receivers = [
                self._receiver(member, entered) for member in entered.members.values() if not member.gone.is_set()
            ]
            root = entered.learner
            entered.planned = plan_sources(receivers, root=root.service_id, root_host=root.host, former=self._former)
            self._former |= entered.planned
        return entered.planned

    def _receiver(self, member: Member, entered: Round) -> Receiver:
        sound = member.state not in (State.QUARANTINED, State.DRAINING) and not member.gone.is_set()
        return Receiver(
            name=member.service_id,
            host=member.host,
            bytes_per_s=member.received_bytes_per_s,
            may_relay=sound and self._clock.now() >= member.relays_from_s,
            memory=member.memory if self._maps else "",
            has_begun=member.service_id in entered.begun,
        )
