"""Whatever happens to a run, every group admitted and every token that a rollout returned is under exactly one term."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.groups.assignment import Assigner
from services.coordinator.state.group import Reward, Sample
from services.coordinator.state.ledger import LIVE, LedgerCounts, count, ledger_metrics
from services.coordinator.state.ledger_row import queued_row
from services.coordinator.state.member import Member, Role, State
from services.coordinator.state.ports import WrongAnswer
from services.coordinator.storage.run_files import BatchFile, RunFiles
from sluice.errors import Overloaded
from sluice.policy_version import PolicyVersion
from tests.unit.coordinator.fakes import FakeRewards, FakeRollouts, Stage, make_config, make_reward, make_sample

HAPPENINGS = ("samples arrive", "weights move on", "a batch is assigned", "a step is committed", "time passes")


class FickleRollouts(FakeRollouts):
    """Returns samples of any length, answers nonsense at times, and gives up at times."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(gate=asyncio.Semaphore(0))
        self._chance = chance
        self.returned_tokens = 0

    async def generate(self, member: Member, *, seeds: Any, **_: Any) -> AsyncIterator[Sample]:
        assert self.gate is not None
        assert member.version is not None
        for index, seed in seeds.items():
            await self.gate.acquire()
            fate = self._chance.random()
            if fate < 0.1:
                raise Overloaded("full")
            if fate < 0.15:
                return
            tokens = self._chance.randint(1, 7)
            self.returned_tokens += tokens
            if fate < 0.2:
                raise WrongAnswer("nonsense", tokens=tokens)
            yield make_sample(index, version=member.version.number, tokens=tokens, seed=seed)


class FickleRewards(FakeRewards):
    """Any verdict, and samples that cannot be graded."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    async def score(self, member: Member, *, samples: Any, **_: Any) -> list[Reward]:
        status = "timeout" if self._chance.random() < 0.2 else "ok"
        return [make_reward(float(self._chance.random() < 0.6), status=status) for _ in samples]


class History:
    """One run with fakes around it, to which things happen."""

    def __init__(self, *, seed: int, staleness: int, folder: Path) -> None:
        chance = random.Random(seed)
        self.rollouts = FickleRollouts(chance)
        self.stage = Stage(
            make_config(coordinator__max_staleness=staleness, rollout__n=3, data__gen_batch_size=9),
            rollouts=self.rollouts,
            rewards=FickleRewards(chance),
        )
        self.member = self.stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
        self.assigner = Assigner(self.stage.run, self.stage.records(RunFiles(folder)))

    async def happens(self, what: str) -> None:
        if what == "samples arrive":
            for _ in range(8):
                assert self.rollouts.gate is not None
                self.rollouts.gate.release()
        elif what == "time passes":
            await self.stage.clock.advance(60.0)
            self.stage.fleet.end_pauses(now_s=self.stage.clock.now())
            if not self.member.pauses:
                self.stage.fleet.set_state(self.member, State.READY)  # as a weight push does
        elif what == "weights move on":
            number = min(self.stage.board.next_step, (self.member.granted or 0) + 1)
            self.member.version, self.member.granted = PolicyVersion(lineage="a", number=number), number
            self.stage.fleet.changed.notify()
        elif what == "a batch is assigned":
            found = await self.assigner.batch(self.stage.board.next_step, wait_s=0)
            assert isinstance(found, BatchFile | str)
        elif self.assigner.assigned:
            step = min(self.assigner.assigned)
            groups = self.assigner.assigned.pop(step)
            rows = {group.group_id: queued_row(group, term="trained", step=step) for group in groups}
            await self.stage.store.commit(step, record={}, tokens=sum(group.tokens for group in groups), rows=rows)
        for _ in range(30):
            await asyncio.sleep(0)

    @property
    def counts(self) -> LedgerCounts:
        return count(self.stage.store.counters, self.stage.board)

    async def ends(self) -> None:
        await self.stage.conductor.abandon_all()
        await self.assigner.close()
        await self.assigner.abandon_queued()


async def live_through(history: History, happenings: list[str]) -> None:
    conducting = asyncio.create_task(history.stage.conductor.run())
    try:
        for what in happenings:
            await history.happens(what)
            counts = history.counts
            assert counts.groups_closed
            assert counts.tokens_closed
            assert counts.received_tokens == history.rollouts.returned_tokens
            assert min(*counts.terms.values(), *counts.tokens.values(), counts.lost_tokens) >= 0
    finally:
        conducting.cancel()
        await asyncio.gather(conducting, return_exceptions=True)
    await history.ends()
    counts, rows = history.counts, history.stage.store.rows_
    assert counts.closed
    assert counts.received_tokens == history.rollouts.returned_tokens
    assert [counts.terms[term] for term in LIVE if term != "assigned"] == [0] * 4
    assert len({row["group_id"] for row in rows}) == len(rows) == counts.admitted - counts.terms["assigned"]
    assigned = [group for groups in history.assigner.assigned.values() for group in groups]
    for row in rows + [queued_row(group, term="assigned", step=0) for group in assigned]:
        assert sum(attempt["tokens"] for attempt in row["attempts"]) == row["tokens"] + row["lost_tokens"]
        assert sum(completion["tokens"] for completion in row["completions"]) == row["tokens"]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    staleness=st.integers(0, 2),
    happenings=st.lists(st.sampled_from(HAPPENINGS), min_size=5, max_size=40),
)
def test_groups_and_tokens_are_conserved_through_any_history(seed: int, staleness: int, happenings: list[str]) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(live_through(History(seed=seed, staleness=staleness, folder=Path(folder)), happenings))


def test_a_token_that_is_in_no_term_keeps_the_ledger_open() -> None:
    counters = {"admitted": 1, "trained": 1, "generated_tokens": 9, "tokens:trained": 6, "lost_tokens": 2}
    board = Stage(make_config()).board
    assert not count(counters, board).closed
    assert count(counters, board).groups_closed
    assert count({**counters, "lost_tokens": 3}, board).closed


def test_the_metrics_are_the_terms_put_together_and_close_as_they_do() -> None:
    counters = {
        "admitted": 9,
        "trained": 4,
        "filtered_all_wrong": 2,
        "filtered_other": 1,
        "failed:refused": 1,
        "open": 1,
    }
    counters |= {"generated_tokens": 50, "tokens:trained": 30, "tokens:filtered_all_wrong": 15, "lost_tokens": 5}
    metrics = ledger_metrics(count(counters, Stage(make_config()).board))
    for unit, whole, apart in (("groups", "admitted", 0), ("tokens", "received", metrics["ledger/lost_tokens"])):
        terms = ("live", "trained", "filtered", "stale", "surplus", "rollback", "abandoned", "failed")
        assert sum(metrics[f"ledger/{term}_{unit}"] for term in terms) + apart == metrics[f"ledger/{whole}_{unit}"]
    assert metrics["ledger/filtered_groups"] == 3
    assert metrics["ledger/closed"] == 1
