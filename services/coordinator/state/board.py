"""The live groups, ranked by admission: which may start, and which make up the next batch. Pure: no sockets, no clock.

sluice/dapo/staleness.py has the rule of the age bound and docs/staleness.md the proof; this file keeps the ranks.
"""

import bisect
from dataclasses import dataclass

from services.coordinator.state.acceptance import Acceptance
from services.coordinator.state.group import Group, Phase, QueuedGroup
from services.coordinator.state.signal import Signal
from sluice.dapo.staleness import in_time, may_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The groups of which batch `step` would be made now."""

    chosen: list[QueuedGroup]
    """Accepted groups in admission order; in any order when the batch is not ready."""
    ready: bool
    """Whether the chosen groups are enough, apart from groups to wait for."""
    expired: list[QueuedGroup]
    """Accepted groups too old for this step: to be dropped as stale."""
    wait_for: list[Group]
    """Groups in flight that this batch would skip and no later batch could train."""


class Board:
    """Live groups: open groups, each owned by its conductor task, and accepted groups."""

    def __init__(
        self,
        *,
        train_batch_size: int,
        gen_batch_size: int,
        max_staleness: int,
        partial_after: int | None = None,
        acceptance: Acceptance | None = None,
        changed: Signal | None = None,
    ) -> None:
        """With `acceptance` groups start ahead of verdicts; not at `max_staleness` 0, where `gen_batch_size` says how many."""
        self.train_batch_size = train_batch_size
        self.gen_batch_size = gen_batch_size
        self.max_staleness = max_staleness
        self._partial_after = partial_after
        """Verdicts on one batch after which a partial batch may go; None: batches are always full."""
        self._acceptance = acceptance if max_staleness > 0 else None
        self.open: dict[str, Group] = {}
        self.queued: dict[str, QueuedGroup] = {}
        self.queued_bytes = 0
        """Bytes of the accepted groups' payloads in Redis."""
        self.next_step = 0
        """The next batch to be assigned."""
        self.verdicts = 0
        """Groups judged since the last assignment."""
        self.asked: int | None = None
        """The step whose batch the learner waits for now."""
        self.changed = changed or Signal()
        """The fleet's signal, so that waiters for room and for a rollout wait for one signal."""
        self._admissions: list[int] = []
        self._accepted: list[int] = []
        """Admissions of the accepted groups, ascending; kept for the ranks of groups that start ahead."""

    def add(self, group: Group) -> None:
        """Adds an admitted group."""
        self.open[group.group_id] = group
        bisect.insort(self._admissions, group.admission)
        self.changed.notify()

    def accept(self, group: Group, accepted: QueuedGroup) -> None:
        """Moves a group from open to queued."""
        del self.open[group.group_id]
        self._queue(accepted)
        self.changed.notify()

    def restore(self, accepted: QueuedGroup) -> None:
        """Adds an accepted group that was found in Redis at start."""
        self._queue(accepted)
        bisect.insort(self._admissions, accepted.admission)

    def remove(self, live: Group | QueuedGroup) -> None:
        """Removes a live group, whose rank is then free."""
        self.open.pop(live.group_id, None)
        if accepted := self.queued.pop(live.group_id, None):
            self.queued_bytes -= accepted.payload_bytes
            self._accepted.remove(live.admission)
        self._admissions.remove(live.admission)
        self.changed.notify()

    def _queue(self, accepted: QueuedGroup) -> None:
        self.queued[accepted.group_id] = accepted
        self.queued_bytes += accepted.payload_bytes
        bisect.insort(self._accepted, accepted.admission)

    def judge(self, *, kept: bool) -> None:
        """Counts a verdict."""
        self.verdicts += 1
        if self._acceptance is not None:
            self._acceptance.judged(kept=kept)

    def rank(self, admission: int) -> int:
        """The number of live groups admitted before this admission."""
        return bisect.bisect_left(self._admissions, admission)

    def likely_rank(self, admission: int) -> int:
        """The rank without the groups in flight that will probably be rejected, where groups start ahead; else the rank."""
        rank = self.rank(admission)
        if self._acceptance is None:
            return rank
        accepted = bisect.bisect_left(self._accepted, admission)
        return accepted + self._acceptance.most_kept(rank - accepted)

    def may_start(self, *, admission: int, version: int) -> bool:
        """The admission gate for a group on a rollout that holds `version`."""
        return may_start(
            rank=self.likely_rank(admission),
            next_step=self.next_step,
            version=version,
            train_batch_size=self.train_batch_size,
            max_staleness=self.max_staleness,
            gen_batch_size=self.gen_batch_size,
        )

    def may_go_on(self, *, admission: int, version: int) -> bool:
        """Whether a group whose oldest token is of `version` can still be trained in time, as far as is known.

        A forecast may get worse. A group that started ahead goes on until its next batch would be too late.
        """
        may_yet = self._acceptance is not None and not self.is_too_old(version)
        return may_yet or self.may_start(admission=admission, version=version)

    def has_room(self) -> bool:
        """Whether another group may be open at all: `gen_batch_size` caps the groups in flight.

        No group may start while a partial batch is about to go, because the batch would have to wait for the new group.
        """
        return len(self.open) < self.gen_batch_size and not self._is_going_partial

    @property
    def may_fill_a_batch(self) -> bool:
        """Whether `choose` may find a batch that is ready; cheap, and never False where it would."""
        return len(self.queued) >= self.train_batch_size or (self._partial_is_due and bool(self.queued))

    @property
    def _is_going_partial(self) -> bool:
        return self.asked == self.next_step and self._partial_is_due and 0 < len(self.queued) < self.train_batch_size

    @property
    def _partial_is_due(self) -> bool:
        return self._partial_after is not None and self.verdicts >= self._partial_after

    def count(self, phase: Phase) -> int:
        """Open groups in a phase."""
        return sum(group.phase is phase for group in self.open.values())

    def is_too_old(self, version: int) -> bool:
        """Whether a token of `version` is too old for the next step. The bound on age rests on this alone."""
        return self.next_step - version > self.max_staleness

    def term_of_late(self, group: Group | QueuedGroup) -> str:
        """The end of a group with signal that no batch can train in time: it was one too many, or too slow."""
        is_one_too_many = self.max_staleness == 0 or (self._acceptance is not None and not group.doomed)
        return "surplus" if is_one_too_many else "stale"

    def choose(self) -> Choice:
        """The groups of which batch `next_step` would be made now."""
        usable = [group for group in self.queued.values() if not self.is_too_old(group.oldest_version)]
        expired = [group for group in self.queued.values() if self.is_too_old(group.oldest_version)]
        is_full = len(usable) >= self.train_batch_size
        if not is_full and not (
            usable and self._partial_is_due
        ):  # the most common case: `choose` runs after every change
            return Choice(chosen=usable, ready=False, expired=expired, wait_for=[])
        usable.sort(key=lambda group: group.admission)
        chosen = usable[: self.train_batch_size]
        admissions = [group.admission for group in chosen]
        wait_for = [group for group in self.open.values() if self._would_be_late(group, admissions)]
        return Choice(chosen=chosen, ready=True, expired=expired, wait_for=wait_for)

    def _would_be_late(self, group: Group, chosen: list[int]) -> bool:
        """Whether a group in flight could no longer be trained in time after a batch of `chosen` without the group."""
        versions = [v for v in (group.start_version, group.oldest_version) if v is not None]
        is_behind_all = len(chosen) == self.train_batch_size and group.admission > chosen[-1]
        if group.doomed or is_behind_all or not versions:
            return False
        taken = bisect.bisect_left(chosen, group.admission)
        return not in_time(
            rank=self.rank(group.admission) - taken,
            next_step=self.next_step + 1,
            version=min(versions),
            train_batch_size=self.train_batch_size,
            max_staleness=self.max_staleness,
        )
