"""The live groups, ranked by admission; which may start, which make up the next batch. Pure: no sockets, no clock.

The rule and the proof of the age bound are in sluice/dapo/staleness.py; this file keeps the ranks it speaks of.
"""

import bisect
from dataclasses import dataclass

from services.coordinator.fleet import Signal
from services.coordinator.model import Group, Phase, QueuedGroup
from sluice.dapo.staleness import in_time, may_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What batch `step` would be made of right now."""

    chosen: list[QueuedGroup]
    """Accepted groups in admission order; in any order and fewer than a batch when it is not ready."""
    expired: list[QueuedGroup]
    """Accepted groups too old for this step: to be dropped as stale."""
    wait_for: list[Group]
    """Groups in flight that this batch would skip and no later one could train."""


class Board:
    """Live groups: open ones (owned by their conductor task) and accepted ones."""

    def __init__(
        self, *, train_batch_size: int, gen_batch_size: int, max_staleness: int, changed: Signal | None = None
    ) -> None:
        self.train_batch_size = train_batch_size
        self.gen_batch_size = gen_batch_size
        self.max_staleness = max_staleness
        self.open: dict[str, Group] = {}
        self.queued: dict[str, QueuedGroup] = {}
        self.next_step = 0
        """The next batch to be assigned."""
        self.verdicts = 0
        """Groups judged since the last assignment."""
        self.changed = changed or Signal()
        """The fleet's signal: whoever waits for room or for a rollout waits for one thing."""
        self._admissions: list[int] = []

    def add(self, group: Group) -> None:
        """A group is admitted."""
        self.open[group.group_id] = group
        bisect.insort(self._admissions, group.admission)
        self.changed.notify()

    def accept(self, group: Group, accepted: QueuedGroup) -> None:
        """open -> queued."""
        del self.open[group.group_id]
        self.queued[accepted.group_id] = accepted
        self.changed.notify()

    def restore(self, accepted: QueuedGroup) -> None:
        """An accepted group found in Redis at start."""
        self.queued[accepted.group_id] = accepted
        bisect.insort(self._admissions, accepted.admission)

    def remove(self, live: Group | QueuedGroup) -> None:
        """A live group has left: its rank is free."""
        self.open.pop(live.group_id, None)
        self.queued.pop(live.group_id, None)
        self._admissions.remove(live.admission)
        self.changed.notify()

    def rank(self, admission: int) -> int:
        """Live groups admitted before this one."""
        return bisect.bisect_left(self._admissions, admission)

    def may_start(self, *, admission: int, version: int) -> bool:
        """The admission gate for a group on a rollout that holds `version`."""
        return may_start(
            rank=self.rank(admission),
            next_step=self.next_step,
            version=version,
            train_batch_size=self.train_batch_size,
            max_staleness=self.max_staleness,
            gen_batch_size=self.gen_batch_size,
        )

    def has_room(self) -> bool:
        """Whether another group may be open at all: `gen_batch_size` caps the groups in flight."""
        return len(self.open) < self.gen_batch_size

    def count(self, phase: Phase) -> int:
        """Open groups in a phase."""
        return sum(group.phase is phase for group in self.open.values())

    def choose(self) -> Choice:
        """Batch `next_step` as it would be now."""
        oldest = self.next_step - self.max_staleness
        usable = [group for group in self.queued.values() if group.oldest_version >= oldest]
        expired = [group for group in self.queued.values() if group.oldest_version < oldest]
        if len(usable) < self.train_batch_size:  # by far the most common: asked after every change
            return Choice(chosen=usable, expired=expired, wait_for=[])
        usable.sort(key=lambda group: group.admission)
        chosen = usable[: self.train_batch_size]
        admissions = [group.admission for group in chosen]
        wait_for = [group for group in self.open.values() if self._would_be_late(group, admissions)]
        return Choice(chosen=chosen, expired=expired, wait_for=wait_for)

    def _would_be_late(self, group: Group, chosen: list[int]) -> bool:
        """Whether a group in flight could no longer be trained in time once `chosen` are gone and it is not."""
        versions = [v for v in (group.start_version, group.oldest_version) if v is not None]
        if group.doomed or group.admission > chosen[-1] or not versions:
            return False
        taken = bisect.bisect_left(chosen, group.admission)
        return not in_time(
            rank=self.rank(group.admission) - taken,
            next_step=self.next_step + 1,
            version=min(versions),
            train_batch_size=self.train_batch_size,
            max_staleness=self.max_staleness,
        )
