"""The age bound on the real conductor, assigner, board and fleet, under any speeds and any bad luck.

Hypothesis draws the run; one seed then decides who moves next: a sample arrives, a rollout dies, joins or gets late weights,
a grader fails, the learner asks or ends its step, time passes. No event waits for a clock but the straggler deadline.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.assignment import Assigner
from services.coordinator.state.board import Board
from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.ledger import count
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import Sampling
from services.coordinator.storage.run_files import BatchFile
from sluice.dapo.staleness import in_time
from sluice.errors import Overloaded, Unavailable
from sluice.policy_version import PolicyVersion
from tests.unit.coordinator.fakes import Stage, make_config, make_reward, make_sample

MOST_EVENTS = 6_000
"""A run that has not ended by then has stalled; the longest of some hundred took a sixth of it."""

STRAGGLER_DEADLINE_S = 60.0


@dataclass(eq=False)
class Call:
    """A request under way on a rollout; each `next` lets one sample through, or ends it."""

    member: Member
    asked: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)


@dataclass
class Rollouts:
    """Samples carry the version that their rollout held when they began, the oldest that they may."""

    calls: list[Call] = field(default_factory=list)

    async def generate(
        self,
        member: Member,
        *,
        request_id: str,
        prompt: PromptLike,
        seeds: Mapping[int, int],
        sampling: Sampling,
        timeout_s: float,
        required_version: PolicyVersion | None = None,
    ) -> AsyncIterator[Sample]:
        assert member.version is not None
        call, version = Call(member), member.version.number
        self.calls.append(call)
        try:
            for index, seed in seeds.items():
                if not await call.asked.get():
                    raise Unavailable("the connection was reset")
                yield make_sample(index, version=version, seed=seed)
        finally:
            self.calls.remove(call)


@dataclass
class Rewards:
    """Some groups have signal; now and then nobody answers."""

    chance: random.Random
    acceptance: float

    async def score(
        self, member: Member, *, group_id: str, prompt: PromptLike, samples: Sequence[Sample], timeout_s: float
    ) -> list[Reward]:
        if self.chance.random() < 0.05:
            raise Overloaded("all workers are busy")
        kept = self.chance.random() < self.acceptance
        accs = [1.0, 0.0] if kept else [self.chance.choice([0.0, 1.0])] * 2
        return [make_reward(acc) for acc in accs]


class Files:
    """Batches in memory."""

    def __init__(self) -> None:
        self.batches: dict[int, BatchFile] = {}

    async def stage_batch(self, step: int, *, payloads: Sequence[bytes]) -> BatchFile:
        self.batches[step] = BatchFile(step=step, payloads=payloads, digest=str(step))
        return self.batches[step]

    async def name_batch(self, step: int, digest: str) -> None:
        assert self.batches[step].digest == digest

    async def read_batch(self, step: int) -> BatchFile:
        return self.batches[step]


class Run:
    """One simulated run; `event` makes the next thing happen."""

    def __init__(
        self,
        *,
        batch: int,
        extra: int,
        staleness: int,
        steps: int,
        acceptance: float,
        padding: int,
        seed: int,
        partial: bool = False,
        confidence: float = 1.0,
    ) -> None:
        self.chance = random.Random(seed)
        config = make_config(
            data__train_batch_size=batch,
            data__gen_batch_size=batch + extra,
            learner__mini_batch_size=batch,
            coordinator__max_staleness=staleness,
            coordinator__refill_confidence=confidence if staleness else 1.0,
            coordinator__straggler_deadline_s=STRAGGLER_DEADLINE_S,
            coordinator__queue_max_bytes=batch * 2 * 8 * 10,
            run__total_steps=steps,
            algorithm__filter_groups={"on_starvation": "train_partial", "max_num_gen_batches": 1} if partial else {},
        )
        self.partial, self.plain = partial, confidence == 1.0
        self.steps, self.staleness = steps, staleness
        self.rollouts = Rollouts()
        self.stage = Stage(config, rollouts=self.rollouts, rewards=Rewards(self.chance, acceptance))  # type: ignore[arg-type]
        self.stage.codec.padding = padding
        self.assigner = Assigner(self.stage.run, self.stage.records(Files()))
        self.version, self.training, self.joined = 0, False, 0
        self.doomed: set[str] = set()
        self.sure: dict[str, int] = {}
        """Oldest versions of the groups that are in time whatever the verdicts on the groups ahead of them."""
        self.ahead: set[str] = set()
        """Groups that were under way when they were not."""
        self.join()

    @property
    def members(self) -> list[Member]:
        """Rollouts that are not lost."""
        return self.stage.fleet.of(Role.ROLLOUT, state=None)

    def join(self) -> None:
        """A rollout is there; it gets weights later."""
        self.joined += 1
        self.stage.add_member(Role.ROLLOUT, f"rollout-{self.joined}")

    async def event(self) -> None:
        """Something happens; then everybody who can goes on."""
        happens = [self._sample, self._sample, self._sample, self._push, self._learner, self._learner, self._rarely]
        await self.chance.choice(happens)()
        for _ in range(12):
            await asyncio.sleep(0)
        self._check_who_is_sure()
        assert count(self.stage.store.counters, self.stage.board).groups_closed

    def _check_who_is_sure(self) -> None:
        """The invariant of the proof: a group that is in time at its rank stays in time, unless its oldest token gets older."""
        board = self.stage.board
        oldest = {group.group_id: group.oldest_version for group in board.queued.values()}
        for group in board.open.values():
            under_way = [v for v in (group.start_version, group.oldest_version) if v is not None]
            oldest |= {group.group_id: min(under_way)} if under_way else {}
        for group_id, version in oldest.items():
            live = board.open.get(group_id) or board.queued[group_id]
            sure = in_time(
                rank=board.rank(live.admission),
                next_step=board.next_step,
                version=version,
                train_batch_size=board.train_batch_size,
                max_staleness=board.max_staleness,
            )
            was = self.sure.get(group_id, version + 1)
            assert sure or version < was or group_id in self.doomed, f"{group_id} is not in time any more"
            if sure:
                self.sure[group_id] = version
            else:
                self.sure.pop(group_id, None)
                self.ahead.add(group_id)

    async def _sample(self) -> None:
        """One arrives; often of the newest request, because short answers overtake long ones."""
        if self.rollouts.calls:
            call = self.chance.choice([self.chance.choice(self.rollouts.calls), self.rollouts.calls[-1]])
            call.asked.put_nowait(True)

    async def _push(self) -> None:
        """One rollout gets the newest weights; others go on with what they have."""
        if self.members:
            member = self.chance.choice(self.members)
            member.version, member.granted = PolicyVersion(lineage="a", number=self.version), self.version
            self.stage.fleet.set_state(member, State.READY)

    async def _learner(self) -> None:
        if self.training:
            self.version, self.training = self.version + 1, False
        elif self.version < self.steps:
            await self._ask()

    async def _rarely(self) -> None:
        await self.chance.choice([self._die, self._leave, self._come, self._time_passes, self._time_passes])()

    async def _die(self) -> None:
        if self.rollouts.calls:
            self.chance.choice(self.rollouts.calls).asked.put_nowait(False)

    async def _leave(self) -> None:
        if len(self.members) > 1:
            self.stage.fleet.set_state(self.chance.choice(self.members), State.DRAINING)

    async def _come(self) -> None:
        if len(self.members) < 4:
            self.join()

    async def _time_passes(self) -> None:
        await self.stage.clock.advance(STRAGGLER_DEADLINE_S)

    async def _ask(self) -> None:
        """Batch `version`; what it may be made of is checked here."""
        step = self.version
        batch = await self.assigner.batch(step, wait_s=0)
        self.doomed |= {group_id for group_id, group in self.stage.board.open.items() if group.doomed}
        if isinstance(batch, str):
            return
        self.training = True
        groups = self.assigner.assigned[step]
        ages = [step - group.oldest_version for group in groups]
        assert min(ages) >= 0
        assert max(ages) <= self.staleness
        admissions = [group.admission for group in groups]
        assert admissions == sorted(admissions)
        left = [group.admission for group in self.stage.board.queued.values()]
        assert not left or admissions[-1] < min(left), "an accepted group was passed over"

    def check_end(self) -> None:
        """What became of every group with signal."""
        store = self.stage.store
        counts = count(store.counters, self.stage.board)
        assert counts.closed
        sizes = {len(groups) for groups in self.assigner.assigned.values()}
        full = self.stage.board.train_batch_size
        assert sizes <= set(range(1, full + 1)) if self.partial else sizes == {full}
        trained = [group.group_id for groups in self.assigner.assigned.values() for group in groups]
        assert len(set(trained)) == len(trained)
        late = {term: {row["group_id"] for row in store.rows_ if row["term"] == term} for term in ("stale", "surplus")}
        assert late["stale"] <= self.doomed, "a group with signal was dropped that no batch went without"
        assert not late["surplus"] & self.sure.keys(), "a group with signal was dropped that could be trained in time"
        if self.staleness > 0 and self.plain:
            assert not late["surplus"]


async def _live(run: Run) -> int:
    conducting = asyncio.create_task(run.stage.conductor.run())
    try:
        for number in range(MOST_EVENTS):
            if run.version == run.steps:
                return number
            await run.event()
            if conducting.done():
                conducting.result()
            if not run.members:
                run.join()
    finally:
        conducting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await conducting
    raise AssertionError(f"stalled before step {run.version}: {run.stage.board.open} {run.stage.board.queued.keys()}")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    batch=st.integers(1, 4),
    extra=st.integers(0, 6),
    staleness=st.integers(0, 4),
    acceptance=st.sampled_from([0.3, 0.7, 1.0]),
    padding=st.sampled_from([0, 400]),  # bytes a payload; two of 400 are more than the queue of a batch of four takes
    seed=st.integers(0, 2**32),
    partial=st.booleans(),
    confidence=st.sampled_from([1.0, 0.9, 0.5]),
)
def test_no_run_breaks_the_age_bound_passes_a_group_over_or_stalls(**drawn: Any) -> None:
    run = Run(steps=4, **drawn)
    asyncio.run(_live(run))
    run.check_end()


def test_the_bound_is_used_up_and_stragglers_are_dropped_in_some_of_these_runs() -> None:
    """Else the property above would hold of runs in which nothing ever happens."""
    ages, doomed, lost = set(), 0, 0
    for seed in range(20):
        run = Run(batch=2, extra=4, staleness=1, steps=6, acceptance=0.7, padding=0, seed=seed)
        asyncio.run(_live(run))
        ages |= {step - group.oldest_version for step, groups in run.assigner.assigned.items() for group in groups}
        doomed += len(run.doomed)
        lost += sum(member.state is State.LOST for member in run.stage.fleet.members.values())
        if ages == {0, 1} and doomed and lost:
            break
    assert ages == {0, 1}
    assert doomed > 0
    assert lost > 0


def test_groups_that_start_ahead_are_trained_or_dropped_in_some_of_these_runs_and_the_plain_rule_starts_none() -> None:
    trained, dropped = set(), 0
    for seed in range(6):
        for confidence in (0.5, 1.0):
            run = Run(
                batch=3,
                extra=9,
                staleness=1,
                steps=6,
                acceptance=0.3,
                padding=0,
                seed=seed,
                confidence=confidence,
            )
            asyncio.run(_live(run))
            run.check_end()
            if confidence == 1.0:
                assert not run.ahead - run.doomed
                continue
            trained |= run.ahead & {group.group_id for groups in run.assigner.assigned.values() for group in groups}
            dropped += run.stage.store.counters["surplus"]
        if trained and dropped:
            break
    assert trained
    assert dropped > 0


def test_batches_that_are_not_full_are_trained_in_some_of_these_runs() -> None:
    sizes = set()
    for seed in range(20):
        run = Run(batch=4, extra=0, staleness=1, steps=4, acceptance=0.3, padding=0, seed=seed, partial=True)
        asyncio.run(_live(run))
        run.check_end()
        sizes |= {len(groups) for groups in run.assigner.assigned.values()}
        if len(sizes) == 4:
            break
    assert sizes == {1, 2, 3, 4}


def _room_in_bytes_alone(admitter: Admitter) -> bool:
    return admitter._board.queued_bytes < 2 * 2 * 8 * 10


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        (Board, {"_would_be_late": lambda *_: False}),
        (Board, {"may_start": lambda *_, **__: True}),
        (Admitter, {"_queue_has_room": _room_in_bytes_alone}),
        (Board, {"is_too_old": lambda *_: False}),
    ],
    ids=[
        "a batch waits for nobody",
        "every group may start",
        "back-pressure holds up the next batch",
        "age is no matter",
    ],
)
def test_a_broken_gate_assignment_or_back_pressure_is_caught(
    part: type, broken: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, instead in broken.items():
        monkeypatch.setattr(part, name, instead)

    padding = 400 if part is Admitter else 0
    drawn: dict[str, Any] = {"batch": 2, "extra": 3, "staleness": 1, "steps": 6, "acceptance": 0.7, "padding": padding}
    drawn |= {"extra": 6, "acceptance": 0.3, "confidence": 0.5} if "is_too_old" in broken else {}

    def forty_runs() -> None:
        for seed in range(40):
            run = Run(**drawn, seed=seed)
            asyncio.run(_live(run))
            run.check_end()

    with pytest.raises(AssertionError):
        forty_runs()
