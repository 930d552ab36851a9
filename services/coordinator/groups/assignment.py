"""Fixes batch k: the first B accepted groups in admission order, recorded before the batch is handed out.

 who waits   for what                                                         unblocked by
 `batch`     B groups, or fewer where a starving run may train fewer          verdicts, `close`, `wait_s`
 `batch`     groups in flight that no later batch could train in time         verdicts, `straggler_deadline_s`, `close`
A batch that is asked for again is read back from the run directory, byte for byte. A batch that nobody can train is set aside:
the learner died on it again and again, refuses it, or its file is damaged.
"""

import asyncio
import time

import structlog

from services.coordinator.state.board import Choice
from services.coordinator.state.group import Group, QueuedGroup
from services.coordinator.state.group_trace import trace_end
from services.coordinator.state.ledger_row import queued_row
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.run_files import BatchFile
from services.coordinator.storage.unbroken import unbroken
from sluice.errors import DataError, NotFound, NotReady
from sluice.telemetry.traces.context import root_of

log = structlog.get_logger(__name__)

POISON = "failed:poison"
"""The term of groups whose batch was set aside."""


class Assigner:
    """Hands out batches, one call at a time."""

    def __init__(self, run: RunContext, records: Records) -> None:
        self._config, self._board, self._events, self._clock = run.config, run.board, run.events, run.clock
        self._progress, self._store, self._files = run.progress, records.store, records.files
        self._tracer = run.tracer
        self._waiting_since: float | None = None
        self._wanted, self._wanted_since_s = -1, 0.0
        """The newest step that the learner asked a batch for, and the time of the first such call."""
        self._one_at_a_time = asyncio.Lock()
        self._closed = False
        self.assigned: dict[int, list[QueuedGroup]] = {}
        """Batches assigned and not yet trained, for the metrics and rows of their commit."""

    async def batch(self, step: int, *, wait_s: float) -> BatchFile | str:
        """The payload of batch `step`, or after `wait_s` the reason why the batch is not ready."""
        give_up = self._clock.now() + wait_s
        async with self._one_at_a_time:
            if (record := await self._store.record("batch", step)) is not None:
                try:
                    return await self._recorded(step, record["digest"])
                except (DataError, NotFound) as damage:
                    if not await self._give_up(step, record["digest"], why=str(damage), keep=False):
                        raise
            if step < self._board.next_step:
                raise NotReady(
                    f"batch {step} was trained, but neither Redis nor the run directory knows it any more: start the "
                    f"learner from a checkpoint of step {self._board.next_step} or later, or start a new run directory"
                )
            if step != self._board.next_step:
                return f"batch {step} was asked for, but the next one is {self._board.next_step}"
            self._board.asked = step
            if self._wanted != step:
                self._wanted, self._wanted_since_s = step, self._clock.now()
            try:
                return await self._when_ready(step, give_up_s=give_up)
            finally:
                self._board.asked = None

    async def _when_ready(self, step: int, *, give_up_s: float) -> BatchFile | str:
        # A learner asks for its next batch before its step is booked: a run that is being stopped ends with that step.
        while not (self._closed or self._progress.stop_requested):
            choice = self._board.choose()
            await self._drop(choice.expired)
            if choice.ready and self._stragglers_are_over(choice):
                return await unbroken(self._assign(step, choice))
            left_s = give_up_s - self._clock.now()
            if left_s <= 0:
                return self._why_not(choice)
            await self._board.changed.until(self._may_go, min(left_s, 1.0))
        return "the run is being stopped"

    def _may_go(self) -> bool:
        return self._closed or self._progress.stop_requested or self._board.may_fill_a_batch

    def traceparents(self, step: int) -> list[str]:
        """The place of each group of batch `step` in its trace, in the batch's order; empty where no group is traced."""
        traces = [group.life.get("trace_id", "") for group in self.assigned.get(step, ())]
        return [trace_id and root_of(trace_id).traceparent for trace_id in traces] if any(traces) else []

    def learner_waits_s(self) -> float:
        """How long the learner has been waiting for its next batch, over all its calls; 0 while the learner has a batch."""
        return self._clock.now() - self._wanted_since_s if self._wanted == self._board.next_step else 0.0

    async def _recorded(self, step: int, digest: str) -> BatchFile:
        await self._files.name_batch(
            step, digest
        )  # the process that recorded the batch may have died before naming the file
        batch = await self._files.read_batch(step)
        if batch.digest != digest:
            raise DataError(f"batch {step}: its file in {self._files.run_dir}/batches is not what was assigned")
        return batch

    def _stragglers_are_over(self, choice: Choice) -> bool:
        if not choice.wait_for:
            return True
        now = self._clock.now()
        if self._waiting_since is None:
            self._waiting_since = now
        if now - self._waiting_since < self._config.coordinator.straggler_deadline_s:
            return False
        names = ", ".join(_named(group) for group in choice.wait_for[:5])
        self._events.emit(
            "warning",
            f"batch {self._board.next_step} goes without {len(choice.wait_for)} slow groups ({names}); they will be stale",
        )
        for group in choice.wait_for:
            group.doomed = True
        return True

    async def _assign(self, step: int, choice: Choice) -> BatchFile:
        """Writes the payload, then the record in Redis, so that a recorded batch can always be read.

        The file gets its name last: Redis shuts out a replaced coordinator before that coordinator overwrites a batch.
        """
        ids = [group.group_id for group in choice.chosen]
        payloads: list[bytes] = []
        for group_id, payload in zip(ids, await self._store.payloads(ids), strict=True):
            if payload is None:
                await self._store.confirm()
            assert payload is not None, f"accepted group {group_id} has no payload"
            payloads.append(payload)
        batch = await self._files.stage_batch(step, payloads=payloads)
        tokens = sum(group.tokens for group in choice.chosen)
        await self._store.assign(
            step, record={"ids": ids, "digest": batch.digest, "assigned_s": time.time()}, group_ids=ids, tokens=tokens
        )
        await self._files.name_batch(step, batch.digest)
        for group in choice.chosen:
            self._board.remove(group)
        self.assigned[step] = choice.chosen
        self._tell_if_partial(step, choice)
        self._waiting_since = None
        self._board.next_step = step + 1
        self._board.verdicts = 0
        await self._drop(self._board.choose().expired)
        self._board.changed.notify()
        return batch

    def _tell_if_partial(self, step: int, choice: Choice) -> None:
        have, need = len(choice.chosen), self._config.data.train_batch_size
        if have < need:
            text = f"batch {step} goes with {have} of {need} groups: {self._board.verdicts} were judged (train_partial)"
            self._events.emit("starving", text, values={"missing_groups": float(need - have)})

    async def set_aside(self, step: int, *, digest: str, why: str) -> bool:
        """Ends the groups of batch `step`, which cannot be trained; the step gets another batch.

        The batch's file is kept under another name. False when the batch was committed or set aside before.
        """
        async with self._one_at_a_time:
            return await self._give_up(step, digest, why=why, keep=True)

    async def _give_up(self, step: int, digest: str, *, why: str, keep: bool) -> bool:
        groups, record = self.assigned.get(step, []), await self._store.record("batch", step)
        if not groups or self._board.next_step != step + 1 or record is None or record["digest"] != digest:
            return False
        return await unbroken(self._set_aside(step, digest, why, groups, keep=keep))

    async def _set_aside(self, step: int, digest: str, why: str, groups: list[QueuedGroup], *, keep: bool) -> bool:
        fault = why
        if keep:
            await self._files.name_batch(step, digest)
            kept = await self._files.keep_poison(step, digest)
            fault = f"{why}; the batch is kept in batches/{kept.name}"
        rows = {group.group_id: queued_row(group, term=POISON, step=-1) | {"fault": fault} for group in groups}
        tokens = sum(group.tokens for group in groups)
        if not await self._store.set_aside(step, digest=digest, term=POISON, tokens=tokens, rows=rows):
            return False
        del self.assigned[step]
        for row in rows.values():
            trace_end(self._tracer, row)
        self._board.next_step = step
        self._board.verdicts = 0
        text = f"batch {step} is set aside: {fault}; another batch takes its place"
        log.warning("batch_set_aside", step=step, groups=len(groups), reason=fault)
        self._events.emit("batch_set_aside", text, values={"step": float(step), "groups": float(len(groups))})
        self._board.changed.notify()
        return True

    async def _drop(self, expired: list[QueuedGroup]) -> None:
        for group in expired:
            await unbroken(self._end(group, self._board.term_of_late(group)))

    async def _end(self, group: QueuedGroup, term: str) -> None:
        row = queued_row(group, term=term, step=-1)
        await self._store.end(group.group_id, was="queued", term=term, row=row, tokens=group.tokens)
        trace_end(self._tracer, row)
        self._board.remove(group)

    async def close(self) -> None:
        """Assigns no batch from now on; assigned batches can still be asked for."""
        self._closed = True
        self._board.changed.notify()
        async with self._one_at_a_time:
            pass  # an assignment under way has ended

    async def abandon_queued(self) -> None:
        """Gives up every accepted group after the last step; to be called after `close`."""
        for group in list(self._board.queued.values()):
            await unbroken(self._end(group, "abandoned"))

    def _why_not(self, choice: Choice) -> str:
        if not choice.ready:
            need = self._config.data.train_batch_size
            return f"{len(choice.chosen)} of {need} groups with signal; {len(self._board.open)} in flight"
        return f"waiting for {len(choice.wait_for)} groups in flight that no later batch could train"


def _named(group: Group) -> str:
    """A group in flight, with the rollout on which the group is slow."""
    return f"{group.group_id} on {group.attempts[-1].rollout}" if group.attempts else group.group_id
