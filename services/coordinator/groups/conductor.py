"""Carries every group along its path: admission, generation, scoring, verdict, queue. The heart of the coordinator.

Groups that fail one after the other have a common cause: then one group is tried at a time, TRY_AGAIN_S apart, until one ends
well (run/failing.py ends a run in which none does).

 who waits              for what                                    unblocked by
 admitter               room, a rollout that may start the group    verdicts, assignments, weight pushes, registrations
 admitter               the next try while groups fail              TRY_AGAIN_S
 a group's task         the group's samples, then its rewards       a rollout or reward, its loss, the deadlines
Only a batch that would otherwise lose a group waits for the group's task (assignment.py).
"""

import asyncio
import time
from collections.abc import Container, Iterator
from typing import Final

import numpy as np

from services.coordinator.episodes.group_episodes import GroupEpisodes
from services.coordinator.episodes.group_turns import Reports
from services.coordinator.episodes.player import Player
from services.coordinator.groups.generation import Generation
from services.coordinator.groups.grading import Grading
from services.coordinator.groups.step_metrics import StepWindow
from services.coordinator.state.group import Admission, Group, GroupFailed, Phase, group_id_of
from services.coordinator.state.group_trace import trace_end
from services.coordinator.state.ledger_row import accepted_group, accepted_info, ledger_row, open_info
from services.coordinator.state.member import Member, needed_roles
from services.coordinator.state.ports import Prompts, RolloutClient, Sampler
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.prompt_places import note_place, place_before
from services.coordinator.storage.records import Records
from services.coordinator.storage.unbroken import unbroken
from sluice.dapo.dynamic_sampling import Verdict, judge_scores

FEWEST_FAILURES: Final = 16
"""Groups that fail in a row before a common cause is assumed; at least two batches of them."""
TRY_AGAIN_S: Final = 5.0
ADMITTED_AT_ONCE: Final = 16
"""Chosen: rendering so many prompts keeps the event loop for some milliseconds."""


class Conductor:
    """Admits groups while the run's progress says so, and carries each group in a task of its own."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        rollouts: RolloutClient,
        grading: Grading,
        prompts: Prompts,
        cursor: str,
        admissions: int,
        player: Player | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """`cursor` and `admissions` are the last ones of an earlier process of this run; `player` plays the episodes of rows
        with an environment; `sampler` chooses prompts (None: in their order)."""
        self._config, self._run_id, self._clock = run.config, run.run_id, run.clock
        self._tracer = run.tracer
        self._board, self._fleet, self._progress = run.board, run.fleet, run.progress
        self._store, self._files, self._codec = records.store, records.files, records.codec
        self._prompts, self._sampler, self._grading = prompts, sampler, grading
        self._generation = Generation(
            run, rollouts=rollouts, report_tokens=lambda tokens: self.window.add_tokens(tokens)
        )
        reports = Reports(
            tokens=lambda tokens: self.window.add_tokens(tokens), began_again=lambda: self.window.add_restart()
        )
        self._episodes = player and GroupEpisodes(run, player=player, rollouts=rollouts, reports=reports)
        self._cursor, self._admissions = cursor, admissions
        self._recorded = admissions, cursor
        """The newest of both that Redis has."""
        self.window = StepWindow(started_s=run.clock.now(), known_parts=run.progress.part_names)
        self.failures_in_a_row = 0
        """Groups that failed since the last group that was kept or filtered."""
        self.last_fault = ""
        """Why the last of them failed."""
        self._try_from_s = run.clock.now()
        """When the next group may be tried while groups fail."""
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
                    await self._board.changed.wait(self._until_try_s())
                    continue
                await unbroken(self._record(*(group for group, _ in begun)))
                for group, member in begun:
                    tasks.create_task(self._carry(group, member), name=group.group_id)

    def sampler_metrics(self) -> dict[str, float]:
        """The metrics of the choice of prompts; none without a sampler."""
        return {} if self._sampler is None else self._sampler.metrics(self._cursor)

    @property
    def admissions(self) -> int:
        """Groups admitted so far, which is the number of the next group."""
        return self._admissions

    async def note_place(self) -> None:
        """Notes durably how far the prompts are, for a `catch_up`."""
        run_dir, (admissions, cursor) = self._files.run_dir, self._recorded
        await asyncio.to_thread(note_place, run_dir, admissions=admissions, cursor=cursor)

    async def catch_up(self, until: int, *, known: Container[str], most: int) -> list[Group]:
        """Goes on to number `until`, which Redis has forgotten; to be called before `run`.

        Each number gets its former prompt, found from the newest noted place on; with a sampler, whose choices Redis had, a
        prompt chosen anew from the order. The newest `most` numbers are admitted again, unless they are `known`.
        """
        again: list[Group] = []
        if self._admissions >= until:
            return again
        noted = await asyncio.to_thread(place_before, self._files.run_dir, until - most)
        if noted is not None and noted[0] > self._admissions:
            self._admissions, self._cursor = noted
        while self._admissions < until:
            group_id = group_id_of(self._admissions, run_id=self._run_id)
            if self._admissions >= until - most and group_id not in known:
                again.append(self._admit())
                await unbroken(self._record(again[-1]))
                continue
            _, self._cursor = self._prompts.next(self._cursor)
            self._admissions += 1
            await asyncio.sleep(0)  # there may be thousands
        await self._store.set_meta({"cursor": self._cursor, "admissions": str(self._admissions)})
        self._recorded = self._admissions, self._cursor
        return again

    def _may_admit(self) -> bool:
        return (
            self._progress.admitting
            and self._board.has_room()
            and self._is_needed()
            and self._queue_has_room()
            and all(self._fleet.of(role) for role in needed_roles(self._config) if role.needs_no_weights)
            and not (self.fails and (self._board.open or self._clock.now() < self._try_from_s))
        )

    @property
    def fails(self) -> bool:
        """Whether so many groups have failed in a row that they have a common cause."""
        return self.failures_in_a_row >= max(FEWEST_FAILURES, 2 * self._board.train_batch_size)

    def _until_try_s(self) -> float | None:
        """Seconds until the next try while groups fail; None where other changes are waited for."""
        left_s = self._try_from_s - self._clock.now()
        return left_s if self.fails and not self._board.open and left_s > 0 else None

    def _queue_has_room(self) -> bool:
        """Back-pressure, which spares the groups of the next batch, because only the next batch empties the queue."""
        spared = self._board.rank(self._admissions) < self._config.data.train_batch_size
        return spared or self._board.queued_bytes < self._config.coordinator.queue_max_bytes

    def _is_needed(self) -> bool:
        """Whether another group could still be trained before the last step ends."""
        batches_ahead = self._board.likely_rank(self._admissions) // self._config.data.train_batch_size
        return self._board.next_step + batches_ahead < self._config.run.total_steps

    def _begin(self) -> Iterator[tuple[Group, Member]]:
        """Admits as many groups as may start now, so that Redis hears of them at once."""
        for _ in range(ADMITTED_AT_ONCE):
            member = self._generation.start_on(self._admissions) if self._may_admit() else None
            if member is None:
                return
            yield self._admit(), member

    async def _record(self, *groups: Group) -> None:
        """Writes admitted groups to Redis: all of them, or none."""
        infos, last = {group.group_id: open_info(group) for group in groups}, groups[-1]
        await self._store.admit(infos, cursor=last.cursor_after, admissions=last.admission + 1)
        self._recorded = last.admission + 1, last.cursor_after

    def _admit(self) -> Group:
        """The next group, on the board; nothing may start on it before `_record`."""
        number, cursor = self._admissions, self._cursor
        if self._sampler is not None:
            cursor = self._sampler.choose(cursor)
        prompt, after = self._prompts.next(cursor)
        epoch, row = self._prompts.origin(cursor, after)
        predicted, chosen = -1.0, False
        if self._sampler is not None and epoch >= 0:
            predicted = self._sampler.admitted(row)
            chosen = not self._sampler.in_turn(epoch, row)
        group_id = group_id_of(number, run_id=self._run_id)
        group = Group(
            group_id=group_id,
            trace_id=self._tracer.trace_of(group_id),
            admission=number,
            prompt=prompt,
            cursor=cursor,
            cursor_after=after,
            admitted=Admission(
                time_s=time.time(),
                rank=self._board.rank(self._admissions),
                next_step=self._board.next_step,
                epoch=epoch,
                row=row,
                predicted=predicted,
                chosen=chosen,
            ),
        )
        self._cursor, self._admissions = after, number + 1
        self._board.add(group)
        return group

    async def _carry(self, group: Group, member: Member | None = None) -> None:
        """Carries one group from admission to the queue or to another end."""
        self.last_progress_s = self._clock.now()
        try:
            await self._fill(group, member)
            await self._grading.fill(group)
        except GroupFailed as failure:
            if group.rewards:
                self.window.add_scored(group)
            self.tell_sampler(group)
            await self._fail(group, failure)
            return
        group.phase = Phase.SCORED
        self.window.add_scored(group)
        group.drop_ungraded()
        self.tell_sampler(group)
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
        self.failures_in_a_row = 0

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
        self.failures_in_a_row += 1
        self.last_fault, self._try_from_s = f"{failure.reason}: {failure.fault}", self._clock.now() + TRY_AGAIN_S
        group.fault = failure.fault
        await self.end(group, f"failed:{failure.reason}")

    def tell_sampler(self, group: Group) -> None:
        """Tells the outcome at once, whatever becomes of the group: the sooner the better are the next choices. Also for a
        group that is taken off the board, whose row may then be drawn again."""
        if self._sampler is not None:
            self._sampler.ended(group)

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
