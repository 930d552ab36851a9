"""The registered services, their states and their load. Pure bookkeeping: no sockets; time comes in as an argument.

REGISTERED -> SYNCING -> READY -> (DRAINING | QUARANTINED | LOST); a lost service that comes back registers anew.
Rollouts become READY only through `applied` of the weight push; rewards are READY when registered, and so are rollouts that
serve their folder's weights for an evaluation without a learner. A member is QUARANTINED
when a weight push to it fails, and for a pause when its answers fail (health.py).
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Final

from services.coordinator.state.health import LONGEST_PAUSE_S
from services.coordinator.state.member import LONGEST_WAIT_TEXT, MOST_RUNNING, Member, Role, State
from services.coordinator.state.signal import Signal
from sluice.errors import Fenced, InvalidRequest, SluiceError, Unavailable

REPLACED_KEPT: Final = 1024
"""Replaced processes that are known: two that replace each other for ever need one."""

BELIEVED_TIMES: Final = 4
"""How many times the capacity of its peers, at the lowest third, a member is believed to have when work is placed."""

FORGET_LOST_S = 600.0
"""How long a lost process stays in the list."""
EXPECTED_S = 120.0
"""How long a service that asked for the configuration is expected to register; the service loads its model meanwhile."""


class Fleet:
    """All members, and signals for changes of members."""

    def __init__(
        self,
        *,
        longest_pause_s: float = LONGEST_PAUSE_S,
        tell: Callable[[Member, str], None] = lambda member, text: None,
    ) -> None:
        """`tell` is called with each member that is quarantined because its answers fail or are wrong, and with the reason."""
        self._longest_pause_s, self._tell = longest_pause_s, tell
        self.members: dict[str, Member] = {}
        self.changed = Signal()
        """Signals any change: a member, a member's load, or a change of the board, which shares this signal."""
        self.roster = Signal()
        """Signals changes of members, their states and the learner's version. Pushes wait for this signal, not for groups."""
        self._listens_since_s = float("-inf")
        self._replaced: deque[str] = deque(maxlen=REPLACED_KEPT)
        self._expected: dict[str, float] = {}

    def register(self, member: Member) -> Member | None:
        """Adds a process, or replaces the process of the same id, which is returned as gone.

        Raises Fenced for a process that was replaced before: two processes of one id would replace each other for ever.
        """
        if member.incarnation in self._replaced:
            raise Fenced(f"{member.service_id}: a newer process runs under this id; end this one or give it another id")
        if not member.service_id:
            self._name(member)
        replaced = self.members.get(member.service_id)
        if replaced is not None and replaced.role is not member.role:
            raise InvalidRequest(
                f"{member.service_id}: is the name of a {replaced.role.value} here; give this {member.role.value} another"
            )
        if replaced is not None and replaced.own and not member.own:
            raise InvalidRequest(
                f"{member.service_id}: is the name of the agents at the gateway; give this server another"
            )
        if replaced is not None:
            self._blame_for_its_end(replaced, successor=member)
            replaced.state = State.LOST
            replaced.gone.set()
            member.health = replaced.health
            if replaced.incarnation == member.incarnation:
                member.barred = replaced.barred
            else:
                self._replaced.append(replaced.incarnation)
        if member.barred or member.pauses:
            member.state, member.reason = State.QUARANTINED, member.barred or member.health.why
        elif member.role.needs_no_weights or member.own_weights:
            member.state = State.READY
        self.members[member.service_id] = member
        self.notify_all()
        return replaced

    def _name(self, member: Member) -> None:
        """Names a process that states no name, and gives it the record of the former process at its address, which has ended.

        The name comes from the process: a count would start again with the coordinator, and names would collide.
        """
        member.service_id = _name_of(member)
        for former in self.of(member.role, state=None) + self.of(member.role, state=State.LOST):
            is_same = former.address == member.address and former.service_id == _name_of(former)
            if not is_same or former.incarnation == member.incarnation:
                continue
            member.health = former.health
            self._blame_for_its_end(former, successor=member)
            if former.state is not State.LOST:
                self.lose(former, "another process serves at its address")

    def _blame_for_its_end(self, member: Member, *, successor: Member) -> None:
        """Counts the end of a process that nobody has noticed, because its successor was faster: a service that comes and
        goes would never be found out.
        """
        noticed = member.state in (State.LOST, State.DRAINING) or member.leaving
        if not noticed and member.incarnation != successor.incarnation:
            self.fail(member, "its process ended without a word", now_s=successor.last_beat_s)

    def expect(self, who: str, *, now_s: float) -> None:
        """Expects a service (role and machine) that has asked for the configuration to register."""
        self._expected = {who: since_s for who, since_s in self._expected.items() if now_s - since_s < EXPECTED_S}
        self._expected[who] = now_s

    def has_come(self, who: str) -> None:
        """Ends the expectation, because the service has registered."""
        self._expected.pop(who, None)

    def expects(self, *, now_s: float) -> bool:
        """Whether a service is expected, which would look in vain for a coordinator that had left."""
        return any(now_s - since_s < EXPECTED_S for since_s in self._expected.values())

    def beat(
        self,
        *,
        service_id: str,
        incarnation: str,
        running: int,
        draining: bool,
        now_s: float,
        waits_for: str = "",
        target: int = 0,
    ) -> bool:
        """Takes a heartbeat; False when the process is not known and must register again. `target` is what the member takes at
        once now; 0: as registered.
        """
        member = self.members.get(service_id)
        if member is None or member.incarnation != incarnation or member.state is State.LOST:
            return False
        member.last_beat_s, member.leaving = now_s, draining
        member.running = min(max(running, 0), MOST_RUNNING)
        member.waits_for = waits_for[:LONGEST_WAIT_TEXT]
        before, member.target = member.takes, target if target > 0 else None
        if member.takes > before:
            self.changed.notify()
        if draining and member.state is not State.DRAINING:
            self.set_state(member, State.DRAINING)
        return True

    def excuse(self, *, now_s: float) -> None:
        """Counts silence from now on, because this process could not hear anybody before."""
        self._listens_since_s = now_s

    def sweep(self, *, now_s: float, timeout_s: float) -> list[Member]:
        """Declares members lost whose last heartbeat is older than `timeout_s`; returns these members."""
        lost = [
            member
            for member in self.members.values()
            if member.state is not State.LOST and now_s - max(member.last_beat_s, self._listens_since_s) > timeout_s
        ]
        for member in lost:
            reason = "has left" if member.leaving else f"no heartbeat for {timeout_s:.0f} s"
            self.fail(member, reason, now_s=now_s)
            self.lose(member, reason)
        for member in list(self.members.values()):
            if member.state is State.LOST and now_s - member.last_beat_s > timeout_s + FORGET_LOST_S:
                del self.members[member.service_id]
                self.changed.notify()
        return lost

    def lose_if_unreachable(self, member: Member, error: SluiceError, *, now_s: float) -> bool:
        """Declares a member lost after a failed call: waiting for the heartbeat to run out would use up every group's tries.

        If only the link failed, the member's next heartbeat is refused, and the member registers again and gets weights.
        """
        if not isinstance(error, Unavailable) or member.gone.is_set():
            return False
        self.fail(member, str(error), now_s=now_s)
        self.lose(member, str(error))
        return True

    def succeed(self, member: Member) -> None:
        """Counts an attempt that the member ended well."""
        member.health.succeed()

    def fail(self, member: Member, reason: str, *, now_s: float) -> None:
        """Counts a failed attempt, after which the member may get no work for a pause.

        A learner is never paused, because no other can take its place.
        """
        if (
            member.role is Role.LEARNER
            or member.gone.is_set()
            or (pause_s := member.health.fail(now_s=now_s, longest_pause_s=self._longest_pause_s)) is None
        ):
            return
        failures, attempts = member.health.counts
        text = f"no work for {pause_s:g} s: {failures} of its last {attempts} answers failed, this one because {reason}"
        member.health.why = text
        if member.state in (State.READY, State.REGISTERED, State.SYNCING):
            self.set_state(member, State.QUARANTINED, text)
        self._tell(member, text)

    def bar(self, member: Member, reason: str) -> None:
        """Gives the process no work for good; a new process of the service starts anew."""
        member.barred = reason
        self.set_state(member, State.QUARANTINED, reason)
        self._tell(member, reason)

    def end_pauses(self, *, now_s: float) -> None:
        """Gives work again to members whose pause is over."""
        for member in self.members.values():
            if not member.health.end_pause(now_s=now_s) or member.state is not State.QUARANTINED or member.barred:
                continue
            if member.role.needs_no_weights or member.own_weights:
                self.set_state(member, State.READY)
            else:
                self.roster.notify()  # the weight push makes the rollout READY, with the newest version

    def lose(self, member: Member, reason: str) -> None:
        """Declares the member lost; calls to the member end."""
        member.gone.set()
        self.set_state(member, State.LOST, reason)

    def set_state(self, member: Member, state: State, reason: str = "") -> None:
        """Sets a member's state and wakes the waiters."""
        moved, member.state, member.reason = member.state is not state, state, reason
        self.changed.notify()
        if moved:
            self.roster.notify()

    def notify_all(self) -> None:
        """Wakes every waiter on the fleet."""
        self.changed.notify()
        self.roster.notify()

    def of(self, role: Role, *, state: State | None = State.READY) -> list[Member]:
        """Members of a role in a state (READY by default; None: in every state but LOST)."""
        return [
            member
            for member in self.members.values()
            if member.role is role and (member.state is state if state else member.state is not State.LOST)
        ]

    @property
    def learner(self) -> Member | None:
        """The learner that registered last; None when that learner is lost."""
        found = self.of(Role.LEARNER, state=None)
        return found[-1] if found else None

    @property
    def has_left(self) -> bool:
        """Whether services were registered and all have gone. A lost learner comes again to export the model, so a learner
        has gone only after it has said that it leaves.
        """
        gone = {Role.LEARNER: {State.DRAINING}}
        return bool(self.members) and all(
            member.leaving or member.state in gone.get(member.role, {State.DRAINING, State.LOST})
            for member in self.members.values()
        )

    def least_loaded(self, candidates: list[Member], *, avoid: Collection[str] = ()) -> Member | None:
        """The member with the smallest share of its capacity in use; ties go to the member that was idle longest.

        A member on trial is no candidate while it has work. Members of the names in `avoid` are chosen only when there is no
        other candidate.
        """
        free = [member for member in candidates if not (member.health.on_trial and member.outstanding)]
        if not free:
            return None
        others = [member for member in free if member.service_id not in avoid] or free
        believed = self._believed(others[0].role)
        chosen = min(others, key=lambda member: member.outstanding / _capacity(member, believed))
        # Rotating the dictionary order spreads ties over the fleet.
        self.members[chosen.service_id] = self.members.pop(chosen.service_id)
        return chosen

    def with_room(self, role: Role) -> list[Member]:
        """READY members with less work than the capacity that is believed."""
        believed = self._believed(role)
        return [member for member in self.of(role) if member.outstanding < _capacity(member, believed)]

    def without_full(self, members: list[Member]) -> list[Member]:
        """The rollouts, but for those that state how much they take now and have that much work."""
        if all(member.target is None for member in members):
            return members
        believed = self._believed(Role.ROLLOUT)
        return [
            member for member in members if member.target is None or member.outstanding < _capacity(member, believed)
        ]

    def give_back(self, member: Member, places: int = 1) -> None:
        """Takes back places that work had on the member, and wakes those that wait for one."""
        member.outstanding -= places
        self.changed.notify()

    def another_may_serve(self, role: Role, *, refused_by: Mapping[str, Member]) -> bool:
        """Whether a request that members refuse may be served by another one: a READY one, or one that may come back.

        Nobody waits for a member to come back when a member that refused has answered other requests well: then the
        fault is the request's.
        """
        others = [
            member for member in self.members.values() if member.role is role and member.service_id not in refused_by
        ]
        if any(member.state is State.READY for member in others):
            return True
        if any(member.health.answers for member in refused_by.values()):
            return False
        return any(member.state is not State.DRAINING and not member.leaving for member in others)

    def _believed(self, role: Role) -> float:
        """The largest capacity that is believed: a member that claims more than its peers would win every placement."""
        stated = sorted(member.capacity for member in self.of(role) if not member.own)
        return BELIEVED_TIMES * stated[(len(stated) - 1) // 3] if len(stated) > 1 else float("inf")


def _capacity(member: Member, believed: float) -> float:
    return member.capacity if member.own else min(member.takes, believed)


def _name_of(member: Member) -> str:
    """The name that a process without one gets."""
    return f"{member.role.value}-{member.incarnation[:8]}"
