"""From whom each rollout gets the newest version while the version spreads: who has come, who has begun, who is in doubt.

A *round* is one version for rollouts that hold the same version before it and so get the same payload. Who arrives in a
round gets a source by the plan (plan.py), which later arrivals do not change. A rollout may be a source as soon as it has
begun to receive.

 who waits          for what                                   unblocked by
 a rollout's task   its source to begin to receive             the source's task: begun, failed, gone
"""

import asyncio
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from services.coordinator.state.fleet import Fleet, Member, State
from services.coordinator.state.signal import Signal
from services.coordinator.weights.plan import Receiver, plan_sources
from sluice.clock import Clock
from sluice.errors import Unavailable
from sluice.policy_version import PolicyVersion
from sluice.v1 import learner_pb2

DOUBT_S: Final = 300.0
"""How long a rollout that was slow or did not answer is nobody's source. Chosen: some pushes of a large model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Who sends a rollout its payload."""

    member: Member
    offer: learner_pb2.OpenTransferResponse | None
    """What a relay got from the learner, which its receivers get from the coordinator; None where the learner sends."""


@dataclass(kw_only=True, slots=True, eq=False)
class Round:
    """One version on its way to rollouts that held the same version."""

    learner: Member
    members: dict[str, Member] = field(default_factory=dict)
    begun: dict[str, learner_pb2.OpenTransferResponse] = field(default_factory=dict)
    """By name: what the learner sends to those that have begun to receive."""
    accused: dict[str, set[str]] = field(default_factory=dict)
    """By name of the receiver: the sources whose bytes it found wrong."""
    slow: dict[str, set[str]] = field(default_factory=dict)
    """By name of the receiver: the sources that were slow for it."""
    planned: dict[str, str] | None = None
    changed: Signal = field(default_factory=Signal)

    def begins(self, member: Member, opened: learner_pb2.OpenTransferResponse) -> None:
        """From now on others may receive from this rollout."""
        self.begun[member.service_id] = opened
        self.changed.notify()

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

    def __init__(self, fleet: Fleet, clock: Clock, *, relay: bool) -> None:
        """Without `relay` everybody gets everything from the learner."""
        self._fleet, self._clock, self._relay = fleet, clock, relay
        self._newest: tuple[str, PolicyVersion | None] = ("", None)
        """The learner's process and version that the rounds are for."""
        self._rounds: dict[Hashable, Round] = {}
        """By the version that the rollouts of a round hold."""
        self._former: dict[str, str] = {}
        """The newest source of each rollout, by name."""
        self._in: dict[Member, Round] = {}

    def arrive(self, member: Member, learner: Member) -> Round:
        """The round that brings the rollout to the learner's version."""
        if (learner.incarnation, learner.version) != self._newest:
            self._newest, self._rounds = (learner.incarnation, learner.version), {}
            self._former = {name: source for name, source in self._former.items() if name in self._fleet.members}
            self._in = {each: entered for each, entered in self._in.items() if not each.gone.is_set()}
        entered = self._rounds.setdefault(member.version, Round(learner=learner))
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
                return Source(member=entered.learner, offer=None)
            if (offer := entered.begun.get(name)) is not None:
                return Source(member=source, offer=offer)
            await entered.changed.wait()

    def doubt(self, source: Member, entered: Round, *, for_good: bool = False) -> None:
        """Has nobody receive from this rollout for DOUBT_S, or for as long as its process lives."""
        source.relays_from_s = math.inf if for_good else max(source.relays_from_s, self._clock.now() + DOUBT_S)
        entered.replan()

    def is_slow(self, member: Member, source: Member, entered: Round) -> None:
        """Notes that the source was slow for the rollout. When two were, the rollout is the slow one."""
        slow = entered.slow.setdefault(member.service_id, set())
        slow.add(source.service_id)
        if len(slow) == 1:
            self.doubt(source, entered)
            return
        for name in slow:
            if (wronged := entered.members.get(name)) is not None and wronged.relays_from_s < math.inf:
                wronged.relays_from_s = 0.0
        self.doubt(member, entered)

    def _plan(self, entered: Round) -> dict[str, str]:
        if entered.planned is None:
            receivers = [self._receiver(member) for member in entered.members.values() if not member.gone.is_set()]
            root = entered.learner
            entered.planned = plan_sources(receivers, root=root.service_id, root_host=root.host, former=self._former)
            self._former |= entered.planned
        return entered.planned

    def _receiver(self, member: Member) -> Receiver:
        sound = member.state not in (State.QUARANTINED, State.DRAINING) and not member.gone.is_set()
        return Receiver(
            name=member.service_id,
            host=member.host,
            bytes_per_s=member.received_bytes_per_s,
            may_relay=sound and self._clock.now() >= member.relays_from_s,
        )
