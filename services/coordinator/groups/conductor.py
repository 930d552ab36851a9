"""Carries every group along its path: admission, generation, scoring, verdict, queue. The heart of the coordinator.

Which group is admitted, and when, is the admitter's to say (admitter.py).

 who waits              for what                                    unblocked by
 admitter               room, a rollout that may start the group    verdicts, assignments, weight pushes, registrations
 admitter               the next try while groups fail              TRY_AGAIN_S (failures.py)
 a group's task         the group's samples, then its rewards       a rollout or reward, its loss, the deadlines
Only a batch that would otherwise lose a group waits for the group's task (assignment.py).
"""

import asyncio
from collections.abc import Iterator
from typing import Final

import numpy as np

from services.coordinator.episodes.group_episodes import GroupEpisodes
from services.coordinator.episodes.group_turns import Reports
from services.coordinator.episodes.player import Player
from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.generation import Generation
from services.coordinator.groups.grading import Grading
from services.coordinator.groups.step_metrics import StepWindow
from services.coordinator.state.group import Group, GroupFailed, Phase
from services.coordinator.state.group_trace import trace_end
from services.coordinator.state.ledger_row import accepted_group, accepted_info, ledger_row
from services.coordinator.state.member import Member
from services.coordinator.state.ports import RolloutClient
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.unbroken import unbroken
from sluice.dapo.dynamic_sampling import Verdict, judge_scores

ADMITTED_AT_ONCE: Final = 16
"""Chosen: rendering so many prompts keeps the event loop for some milliseconds."""


class Conductor:
    """Admits groups while the admitter lets it, and carries each group in a task of its own."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        admitter: Admitter,
        rollouts: RolloutClient,
        grading: Grading,
        player: Player | None = None,
    ) -> None:
        """`player` plays the episodes of rows with an environment."""
        self._config, self._clock = run.config, run.clock
        self._tracer = run.tracer
        self._board, self._store, self._codec = run.board, records.store, records.codec
        self.admitter, self._grading = admitter, grading
        self._generation = Generation(
            run, rollouts=rollouts, report_tokens=lambda tokens: self.window.add_tokens(tokens)
        )
        reports = Reports(
            tokens=lambda tokens: self.window.add_tokens(tokens), began_again=lambda: self.window.add_restart()
        )
        self._episodes = (
            GroupEpisodes(run, player=player, rollouts=rollouts, reports=reports) if player is not None else None
        )
        self.window = StepWindow(started_s=run.clock.now(), known_parts=run.progress.part_names)
        self.last_progress_s = run.clock.now()
        """When a group last started or ended, for the stall watch."""

    async def run(self) -> None:
        """Admits and carries groups until cancelled; a cancellation ends no group durably (see `abandon_all`)."""
        async with asyncio.TaskGroup() as tasks:
            for group in list(self._board.open.values()):
                tasks.create_task(self._carry(group), name=group.group_id)
            while True:
                begun = list(self._begin())
                if not begun:
                    await self._board.changed.wait(self.admitter.failures.until_try_s())
                    continue
                await unbroken(self.admitter.record(*(group for group, _ in begun)))
                for group, member in begun:
                    tasks.create_task(self._carry(group, member), name=group.group_id)

    def _begin(self) -> Iterator[tuple[Group, Member]]:
        """Admits as many groups as may start now, so that Redis hears of them at once."""
        admitter = self.admitter
        for _ in range(ADMITTED_AT_ONCE):
            member = self._generation.start_on(admitter.admissions) if admitter.may_admit() else None
            if member is None:
                return
            yield admitter.admit(), member

    async def _carry(self, group: Group, member: Member | None = None) -> None:
        """Carries one group from admission to the queue or to another end."""
        self.last_progress_s = self._clock.now()
        try:
            await self._fill(group, member)
            await self._grading.fill(group)
        except GroupFailed as failure:
            if group.rewards:
                self.window.add_scored(group)
            self.admitter.tell_sampler(group)
            await self._fail(group, failure)
            return
        group.phase = Phase.SCORED
        self.window.add_scored(group)
        group.drop_ungraded()
        self.admitter.tell_sampler(group)
        verdict = self._judge(group)
        self.window.add_verdict(verdict, group)
        self._board.judge(kept=verdict is Verdict.KEPT)
        if verdict is Verdict.KEPT and not self._too_late(group):
            try:
                payload = self._codec.encode(group)
            except GroupFailed as failure:
                await self._fail(group, failure)
                return
            await unbroken(self._accept(group, payload))
        elif verdict is Verdict.KEPT:
            await self.end(group, self._board.term_of_late(group))
        else:
            await self.end(group, f"filtered_{verdict.value}")
        self.admitter.failures.end()

    async def _fill(self, group: Group, member: Member | None) -> None:
        """Fills the group's samples; `member` has places for them."""
        if not group.prompt.environment:
            await self._generation.fill(group, member)
            return
        if member is not None:  # it let the group be admitted; episodes take a place for each turn
            self._generation.give_back(member)
        if self._episodes is None:
            fault = f"the row names the environment {group.prompt.environment!r}, and the recipe has no environments"
            raise GroupFailed(reason="environment", fault=fault)
        await self._episodes.fill(group)

    async def _fail(self, group: Group, failure: GroupFailed) -> None:
        self.admitter.failures.add(failure)
        group.fault = failure.fault
        await self.end(group, f"failed:{failure.reason}")

    def _judge(self, group: Group) -> Verdict:
        """Dynamic sampling (eq. 11); with the filter off every group is kept."""
        filters = self._config.algorithm.filter_groups
        return judge_scores(
            filters.metric if filters.enable else None,
            raw_scores=np.array([reward.raw_score for reward in group.rewards]),
            acc=np.array([reward.acc for reward in group.rewards]),
            shaped_rewards=np.array([reward.shaped_reward for reward in group.rewards]),
        )

    def _too_late(self, group: Group) -> bool:
        assert group.oldest_version is not None
        return self._board.is_too_old(group.oldest_version)

    async def _accept(self, group: Group, payload: bytes) -> None:
        accepted = accepted_group(group, payload_bytes=len(payload))
        await self._store.accept(
            group.group_id,
            info=accepted_info(accepted),
            payload=payload,
            tokens=group.response_tokens,
            lost=group.lost_tokens,
        )
        self.last_progress_s = self._clock.now()
        self._board.accept(group, accepted)

    async def abandon_all(self) -> None:
        """Gives up every open group; to be called when `run` has ended."""
        for group in list(self._board.open.values()):
            await self.end(group, "abandoned")

    async def end(self, group: Group, term: str) -> None:
        """Ends an open group: records the end, then frees the group's rank."""
        await unbroken(self._end(group, term))

    async def _end(self, group: Group, term: str) -> None:
        row = ledger_row(group, term=term)
        await self._store.end(
            group.group_id,
            was="open",
            term=term,
            row=row,
            tokens=group.response_tokens,
            lost=group.lost_tokens,
        )
        trace_end(self._tracer, row)
        self.last_progress_s = self._clock.now()
        self._board.remove(group)
