"""Which group is next, and whether it may be admitted: its number, its prompt, how far the prompts are, what Redis has of it.

Waits for nobody but Redis and a file of the run directory; the conductor asks again when something has changed.
"""

import asyncio
import time
from collections.abc import Container

from services.coordinator.groups.failures import Failures
from services.coordinator.state.group import Admission, Group, group_id_of
from services.coordinator.state.ledger_row import open_info
from services.coordinator.state.member import needed_roles
from services.coordinator.state.ports import Prompts, Sampler
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.prompt_places import note_place, place_before
from services.coordinator.storage.records import Records
from services.coordinator.storage.unbroken import unbroken


class Admitter:
    """Numbers the groups of a run and gives each its prompt."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        prompts: Prompts,
        cursor: str,
        admissions: int,
        sampler: Sampler | None = None,
    ) -> None:
        """`cursor` and `admissions` are the last ones of an earlier process of this run; `sampler` chooses prompts (None: in
        their order)."""
        self._config, self._run_id = run.config, run.run_id
        self._tracer = run.tracer
        self._board, self._fleet, self._progress = run.board, run.fleet, run.progress
        self._store, self._files = records.store, records.files
        self._prompts, self._sampler = prompts, sampler
        self._cursor, self._admissions = cursor, admissions
        self._recorded = admissions, cursor
        """The newest of both that Redis has."""
        self.failures = Failures(run)

    @property
    def admissions(self) -> int:
        """Groups admitted so far, which is the number of the next group."""
        return self._admissions

    def may_admit(self) -> bool:
        """Whether the run needs another group now, and has room for it."""
        return (
            self._progress.admitting
            and self._board.has_room()
            and self._is_needed()
            and self._queue_has_room()
            and all(self._fleet.of(role) for role in needed_roles(self._config) if role.needs_no_weights)
            and self.failures.may_try()
        )

    def _queue_has_room(self) -> bool:
        """Back-pressure, which spares the groups of the next batch, because only the next batch empties the queue."""
        spared = self._board.rank(self._admissions) < self._config.data.train_batch_size
        return spared or self._board.queued_bytes < self._config.coordinator.queue_max_bytes

    def _is_needed(self) -> bool:
        """Whether another group could still be trained before the last step ends."""
        batches_ahead = self._board.likely_rank(self._admissions) // self._config.data.train_batch_size
        return self._board.next_step + batches_ahead < self._config.run.total_steps

    def admit(self) -> Group:
        """The next group, on the board; nothing may start on it before `record`."""
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

    async def record(self, *groups: Group) -> None:
        """Writes admitted groups to Redis: all of them, or none."""
        infos, last = {group.group_id: open_info(group) for group in groups}, groups[-1]
        await self._store.admit(infos, cursor=last.cursor_after, admissions=last.admission + 1)
        self._recorded = last.admission + 1, last.cursor_after

    def tell_sampler(self, group: Group) -> None:
        """Tells the sampler a group's outcome at once, whatever becomes of the group: the sooner the sampler knows, the
        better its next choices. Also for a group that is taken off the board, whose row may then be drawn again.
        """
        if self._sampler is not None:
            self._sampler.ended(group)

    def sampler_metrics(self) -> dict[str, float]:
        """The metrics of the choice of prompts; none without a sampler."""
        return {} if self._sampler is None else self._sampler.metrics(self._cursor)

    async def note_place(self) -> None:
        """Notes durably how far the prompts are, for a `catch_up`."""
        run_dir, (admissions, cursor) = self._files.run_dir, self._recorded
        await asyncio.to_thread(note_place, run_dir, admissions=admissions, cursor=cursor)

    async def catch_up(self, until: int, *, known: Container[str], most: int) -> list[Group]:
        """Goes on to number `until`, which Redis has forgotten; to be called before the conductor runs.

        Each number gets its former prompt, found from the newest noted place on. With a sampler the former choices are
        lost with Redis, so that each number gets a prompt that is chosen anew. The newest `most` numbers are admitted
        again, unless they are `known`.
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
                again.append(self.admit())
                await unbroken(self.record(again[-1]))
                continue
            _, self._cursor = self._prompts.next(self._cursor)
            self._admissions += 1
            await asyncio.sleep(0)  # there may be thousands
        await self._store.set_meta({"cursor": self._cursor, "admissions": str(self._admissions)})
        self._recorded = self._admissions, self._cursor
        return again
