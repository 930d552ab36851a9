"""A learner's commits: step k is trained and version k + 1 is published; a checkpoint is complete.

A repeated commit - after a lost answer, or by a learner that replays from a checkpoint - changes nothing and is answered
with the first record.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog

from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.groups.step_metrics import StepWindow, queue_metrics
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.state.cache_use import CacheUse
from services.coordinator.state.group import QueuedGroup
from services.coordinator.state.group_trace import trace_end
from services.coordinator.state.ledger import count, ledger_metrics
from services.coordinator.state.ledger_row import queued_row
from services.coordinator.state.push_times import PushTimes
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.unbroken import unbroken
from sluice.errors import InvalidRequest, Unavailable
from sluice.policy_version import PolicyVersion
from sluice.run_dir.token_figures import SAMPLE_TOKENS_FILE, TokenFigures, example_of, line_of
from sluice.telemetry.catalogue import NAMES
from sluice.telemetry.traces.context import current, root_of

log = structlog.get_logger(__name__)

LEDGER_FLUSH_STEPS = 20
"""How often ledger rows leave Redis for a file. Chosen: some hundred to ten thousand rows a file."""


class Commits:
    """Books the learner's steps and checkpoints."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        conductor: Conductor,
        assigner: Assigner,
        push_times: PushTimes,
        cache_use: CacheUse,
        rollbacks: Rollbacks,
    ) -> None:
        self._fleet, self._board, self._events = run.fleet, run.board, run.events
        self._progress, self._clock = run.progress, run.clock
        self._store, self._files, self._records = records.store, records.files, records
        self._conductor, self._assigner = conductor, assigner
        self._push_times, self._cache_use = push_times, cache_use
        self._rollbacks = rollbacks
        self._tracer, self._steps = run.tracer, run.steps
        self._one_at_a_time = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        """Books nothing from now on; waits for a commit under way."""
        async with self._one_at_a_time:
            self._closed = True

    async def step(
        self,
        step: int,
        *,
        version: PolicyVersion,
        weights_digest: str,
        batch_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None = None,
    ) -> str:
        """Books step `step`; returns the weights digest recorded for the step. Raises InvalidRequest for a foreign batch.

        example: what the learner tells of the tokens of the group that is kept for people.

        A learner that lost patience may ask again while the first call is still booking: the first call is completed.
        """
        async with self._one_at_a_time:
            self._raise_if_closed()
            return await unbroken(self._book(step, version, weights_digest, batch_digest, metrics, example))

    async def _book(
        self,
        step: int,
        version: PolicyVersion,
        weights_digest: str,
        batch_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None,
    ) -> str:
        """Writes metrics, then the record in Redis: after a kill in between, the repeated commit writes the line again."""
        batch = await self._store.record("batch", step)
        if batch is None:
            await self._store.confirm()  # raises if Redis has lost the record, which is not the learner's fault
        if batch is None or batch["digest"] != batch_digest:
            raise InvalidRequest(f"step {step}: trained on batch digest {batch_digest[:12]}, which was never assigned")
        unknown = set(metrics) - NAMES
        if unknown:
            raise InvalidRequest(f"step {step}: metrics not in the catalogue: {sorted(unknown)}")
        trained = self._assigner.assigned.get(step, [])
        made = {"lineage": version.lineage, "weights_digest": weights_digest, "batch_digest": batch_digest}
        values = await self._report(step, trained, metrics, made) if trained else {}
        if trained:
            await self._show(step, example_of(step, len(trained)), example)
        record = {"lineage": version.lineage, "number": version.number, "digest": weights_digest}
        assigned_s = batch.get("assigned_s", -1.0)
        rows = {
            group.group_id: queued_row(group, term="trained", step=step, assigned_s=assigned_s) for group in trained
        }
        tokens = sum(group.tokens for group in trained)
        recorded = await self._store.commit(step, record=record, tokens=tokens, rows=rows)
        self._newest(version)
        self._trace(rows.values(), version.number)
        if trained:
            del self._assigner.assigned[step]
            self._advance(step, values)
        if trained and (step + 1) % LEDGER_FLUSH_STEPS == 0:
            await self._records.ledger.flush()
        return recorded["digest"]

    def _trace(self, rows: Iterable[Mapping[str, Any]], version: int) -> None:
        if (place := current()) is not None:
            self._steps.note(version, root_of(place.trace_id))
        for row in rows:
            trace_end(self._tracer, row, step=self._steps.of(version))

    async def checkpoint(self, version: PolicyVersion, path: str) -> None:
        """Books a complete checkpoint and forgets batches before the oldest kept checkpoint, in files and in Redis.

        Should Redis forget, the ledger's files have every step before the checkpoint, and the learner every later step.
        """
        async with self._one_at_a_time:
            self._raise_if_closed()
            await self._records.ledger.flush()
            await self._store.set_meta({"checkpoint": json.dumps({"number": version.number, "path": path})})
            await self._conductor.admitter.note_place()
            kept = self._files.kept_checkpoints()
            if kept:
                self._files.drop_batches_before(kept[0])
                # The commit that made the oldest checkpoint stays: a rollback to it goes on from there.
                await self._store.drop_records(min(kept[0], self._progress.trained_steps) - 1)
            await self._rollbacks.superseded_by(version.number)
            self._events.emit("checkpoint_saved", path, values={"version": float(version.number)})

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise Unavailable("the run is being rolled back; call again when the coordinator was started again")

    def _newest(self, version: PolicyVersion) -> None:
        learner = self._fleet.learner
        if learner is not None:
            learner.version = version
        if self._progress.version is None or version.number >= self._progress.version.number:
            self._progress.version = version
        self._fleet.notify_all()

    async def _report(
        self, step: int, trained: list[QueuedGroup], metrics: Mapping[str, float], made: Mapping[str, str]
    ) -> Mapping[str, float]:
        """Writes the step's line, with the digests for a replay; returns the metrics."""
        window = self._conductor.window.metrics(now_s=self._clock.now(), step=step, trained=trained)
        window |= self._conductor.admitter.sampler_metrics()
        booked = ledger_metrics(count(await self._store.counters(), self._board))
        since = self._push_times.metrics() | self._cache_use.metrics()
        values = {**window, **queue_metrics(self._board), **since, **booked, **metrics}
        names = json.dumps(self._progress.part_names)
        await self._store.set_meta({"train_ended_s": str(time.time()), "part_names": names})
        line = {"kind": "step", "step": step, "time_s": time.time(), **made, **values}
        await self._files.append_metrics(line)
        return values

    async def _show(self, step: int, place: int, figures: TokenFigures | None) -> None:
        """Writes an example group for people: its texts, and its tokens with what the learner tells of them."""
        payload = await self._files.read_group(step, place)
        example = self._records.codec.to_read(payload)
        await self._files.append_sample({"step": step, **example})
        tokens = sum(sample["tokens"] for sample in example["samples"])
        if figures is not None and (figures.group_id, len(figures.entropies)) != (example["group_id"], tokens):
            told = f"{len(figures.entropies)} tokens of {figures.group_id}"
            log.warning("token_figures_left_out", step=step, told=told, group=example["group_id"], tokens=tokens)
            figures = None
        line = line_of(step, example["group_id"], payload=payload, figures=figures)
        await self._files.append_sample(line, name=SAMPLE_TOKENS_FILE)

    def _advance(self, step: int, values: Mapping[str, float]) -> None:
        """Counts the step and wakes the waiters."""
        now = self._clock.now()
        self._conductor.window = StepWindow(started_s=now, known_parts=self._progress.part_names)
        self._push_times.clear()
        self._cache_use.clear()
        self._progress.metrics.update(values)
        self._progress.trained_steps = step + 1
        self._progress.last_commit_s = now
        self._progress.train_ended_s = time.time()
        self._events.emit("step_trained", f"step {step} trained", values={"step": float(step), **values})
        self._board.changed.notify()
