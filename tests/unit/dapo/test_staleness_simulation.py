"""The bound of `sluice.dapo.staleness`, on random orders of events: slow and lagging rollouts, rejections, retries.

A run in miniature: several rollouts with versions of their own, groups that take any time, a learner that trains one
batch at a time. Nothing is real but the decisions under test.
"""

import random
from dataclasses import dataclass, field

import pytest

from sluice.dapo.staleness import age, expires_if_missed, in_time, may_start


@dataclass(slots=True, kw_only=True, eq=False)
class Group:
    """A live group; two are the same only if they are one object."""

    version: int
    accepted: bool = False


@dataclass(slots=True, kw_only=True)
class Run:
    """State of the miniature run; `live` is in order of admission."""

    batch: int
    staleness: int
    gen_batch: int
    chance: random.Random
    rollouts: list[int] = field(default_factory=lambda: [0, 0, 0])
    live: list[Group] = field(default_factory=list)
    next_step: int = 0
    learner_version: int = 0
    """Equals `next_step` while the learner is idle, `next_step - 1` while it trains."""
    trained_ages: list[int] = field(default_factory=list)
    expired: int = 0
    surplus: int = 0

    def admit(self) -> bool:
        """Starts a group on a random rollout if the gate lets it."""
        version = self.chance.choice(self.rollouts)
        started = may_start(
            rank=len(self.live),
            next_step=self.next_step,
            version=version,
            train_batch_size=self.batch,
            max_staleness=self.staleness,
            gen_batch_size=self.gen_batch,
        )
        if started:
            self.live.append(Group(version=version))
        return started

    def finish(self, acceptance: float) -> bool:
        """A group in flight ends, accepted or rejected; often the newest, because short answers overtake long ones."""
        running = [group for group in self.live if not group.accepted]
        if not running:
            return False
        group = self.chance.choice([self.chance.choice(running), running[-1]])
        group.accepted = self.chance.random() < acceptance
        if not group.accepted:
            self.live.remove(group)
        return True

    def retry(self) -> bool:
        """A rollout dies and a group of its is generated again, elsewhere, on the newest version."""
        running = [group for group in self.live if not group.accepted]
        if not running:
            return False
        self.chance.choice(running).version = max(self.rollouts)
        return True

    def push(self) -> bool:
        """One rollout gets the newest weights."""
        behind = [i for i, version in enumerate(self.rollouts) if version < self.learner_version]
        if not behind:
            return False
        self.rollouts[self.chance.choice(behind)] = self.learner_version
        return True

    def train(self) -> bool:
        """The learner ends the step that it was handed."""
        if self.learner_version == self.next_step:
            return False
        self.learner_version = self.next_step
        return True

    def assign(self) -> bool:
        """Hands out the next batch unless it would make a group that is still in flight expire."""
        taken = [group for group in self.live if group.accepted][: self.batch]
        if self.learner_version < self.next_step or len(taken) < self.batch:
            return False
        last = self.live.index(taken[-1])
        left = [group for group in self.live if group not in taken]
        skipped = left[: last + 1 - self.batch]
        if any(not self._in_time_after(group, rank=rank) for rank, group in enumerate(skipped)):
            return False
        self.trained_ages += [age(step=self.next_step, version=group.version) for group in taken]
        self.next_step += 1
        self.live = self._drop_what_can_no_longer_be_trained(left)
        return True

    def _in_time_after(self, group: Group, *, rank: int) -> bool:
        return in_time(
            rank=rank,
            next_step=self.next_step + 1,
            version=group.version,
            train_batch_size=self.batch,
            max_staleness=self.staleness,
        )

    def _drop_what_can_no_longer_be_trained(self, left: list[Group]) -> list[Group]:
        if self.staleness == 0:
            self.surplus += len(left)
            return []
        oldest_allowed = self.next_step - self.staleness
        self.expired += sum(group.version < oldest_allowed for group in left)
        return [group for group in left if group.version >= oldest_allowed]


def _simulate(run: Run, *, acceptance: float, steps: int) -> None:
    """Random events until `steps` batches are assigned; fails if none is possible any more."""
    events = [run.admit, run.admit, lambda: run.finish(acceptance), run.retry, run.push, run.train, run.assign]
    idle = 0
    while run.next_step < steps:
        idle = 0 if run.chance.choice(events)() else idle + 1
        assert idle < 500, f"no progress any more: {run}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("acceptance", [0.3, 0.9])
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("staleness", [0, 1, 2, 4])
def test_no_trained_token_breaks_the_bound_and_no_group_expires(
    staleness: int, batch: int, acceptance: float, seed: int
) -> None:
    run = Run(batch=batch, staleness=staleness, gen_batch=2 * batch, chance=random.Random(seed))
    _simulate(run, acceptance=acceptance, steps=8)
    assert len(run.trained_ages) == 8 * batch
    assert min(run.trained_ages) >= 0
    assert max(run.trained_ages) <= staleness
    assert run.expired == 0
    assert staleness == 0 or run.surplus == 0


def test_asynchronous_runs_use_the_staleness_they_are_given() -> None:
    run = Run(batch=2, staleness=2, gen_batch=2, chance=random.Random(0))
    _simulate(run, acceptance=0.9, steps=12)
    assert max(run.trained_ages) == 2


def _accept_in_flight(run: Run, *, positions: list[int]) -> None:
    for position in positions:
        run.live[position].accepted = True


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_waits_for_stragglers_that_would_expire_only_because_they_are_many(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(run: Run, group: Group, *, rank: int) -> bool:
        return not expires_if_missed(step=run.next_step, oldest_version=group.version, max_staleness=run.staleness)

    if not exact:
        monkeypatch.setattr(Run, "_in_time_after", alone)
    run = Run(batch=2, staleness=2, gen_batch=2, chance=random.Random(0))
    assigned = False
    for _ in range(2):  # steps 0 and 1 train the groups admitted last; four older ones stay in flight
        while run.admit():
            pass
        assert len(run.live) == 6
        _accept_in_flight(run, positions=[4, 5])
        assigned = run.assign()
        run.train()
        while run.push():
            pass
    assert assigned != exact  # batch 1 would leave four groups of version 0, and batch 2 takes two
    _accept_in_flight(run, positions=[0, 1, 2, 3])
    while run.live:
        assert run.assign()
        run.train()
    assert run.trained_ages == ([0, 0, 1, 1, 2, 2, 2, 2] if exact else [0, 0, 0, 0, 2, 2])
    assert run.expired == (0 if exact else 2)
