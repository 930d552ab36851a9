"""A deliberate rollback: the run goes on from version c under a new lineage, and everything after version c is given up.

One script in Redis decides a rollback (store_rollback.py). The run's files follow: `bring_in_line` does the missing work at
once and whenever a coordinator starts. The coordinator that has decided a rollback ends, because there is one way to start:
from the state in Redis. Prompts go on after the last drawn prompt, so the surviving history gets other data.

 who waits     for what       unblocked by
 `request`     the decision   app/serving.py, which ends the run's life first and then has `make` called
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from services.coordinator.groups.assignment import Assigner
from services.coordinator.recovery import rollback_files
from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.group import Group
from services.coordinator.state.group_trace import trace_end
from services.coordinator.state.live_groups import live_groups
from services.coordinator.state.progress import KEPT_EVALUATIONS, Progress, RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from sluice.errors import InvalidRequest, LaunchError, NotFound, NotReady, SluiceError
from sluice.lineage import FIRST, LINEAGES_FILE, LineageBook, Rollback, is_given_up
from sluice.report.metrics import past
from sluice.run_dir import checkpoints

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What a rollback gives up; a line of RUN/rollbacks.jsonl once the rollback is made."""

    to: int
    reached: int
    """Trained steps before the rollback; the steps from `to` on are given up."""
    groups: Mapping[str, int]
    """Groups by their former state: trained, assigned, queued, open."""
    tokens: Mapping[str, int]
    """Tokens of the groups' samples, by former state."""
    checkpoints: Sequence[int]
    """Versions of the checkpoints that are set aside, oldest first."""
    number: int = 0
    """1 for the first rollback of the run; 0 for a rollback that is not made yet."""
    lineage: str = ""
    """The lineage of the history that follows."""
    time_s: float = 0.0
    """Unix time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Live:
    """A live group that is given up."""

    was: str
    row: Mapping[str, Any]
    tokens: int
    lost: int = 0


class Rollbacks:
    """The rollbacks of one run, and a requested rollback."""

    def __init__(
        self, run: RunContext, records: Records, *, assigner: Assigner, made: Sequence[Account], idle: bool
    ) -> None:
        """`made` are the earlier rollbacks, oldest first; with `idle` the run is at rest and may have ended."""
        self.made = made
        """The rollbacks made so far, oldest first."""
        self._board, self._progress, self._events = run.board, run.progress, run.events
        self._records, self._store, self._files = records, records.store, records.files
        self._assigner, self._idle, self._tracer = assigner, idle, run.tracer
        self.requested = asyncio.Event()
        self._to = -1
        self._decided: asyncio.Future[Account] = asyncio.get_running_loop().create_future()

    @property
    def history(self) -> list[Rollback]:
        """The rollbacks in the form that decides which versions were given up, oldest first."""
        return history(self.made)

    async def check(self, to: int) -> None:
        """Returns when the run can go back to version `to`.

        Raises InvalidRequest, NotReady, or NotFound with the checkpoints that verify.
        """
        reached, state = self._progress.trained_steps, self._progress.state
        if not 0 <= to < reached:
            raise InvalidRequest(f"rollback: must go back to a version before {reached}, the newest one, got {to}")
        if (state.final or self._progress.stop_requested) and not self._idle:
            what = f"has ended ({state.value})" if state.final else "is being stopped"
            raise NotReady(
                f"rollback: the run {what}", fix="when nothing of it is up, `sluice rollback --run-dir` can do it"
            )
        if self.requested.is_set():
            raise NotReady("rollback: another one is being made", fix="wait for it")
        if to > 0 and (fault := await asyncio.to_thread(self._fault, to)):
            good = await asyncio.to_thread(self._that_verify)
            names = ", ".join(f"step-{step}" for step in good if step < reached) or "none but step-0, the base model"
            raise NotFound(f"rollback: cannot go back to step-{to}: {fault}", fix=f"those that verify: {names}")

    async def preview(self, to: int) -> Account:
        """What a rollback would give up now. Raises as `check` does."""
        await self.check(to)
        account, _ = await self._account(to)
        return account

    async def request(self, to: int) -> Account:
        """Has the rollback made; returns its account once the rollback is decided. Raises as `check` does."""
        await self.check(to)
        if self.requested.is_set():
            raise NotReady("rollback: another one is being made", fix="wait for it")
        self._to = to
        self.requested.set()
        return await asyncio.shield(self._decided)

    async def make(self) -> None:
        """Makes the requested rollback, when nothing else changes the run any more, and answers the waiting `request`."""
        try:
            self._decided.set_result(await self._make(self._to))
        except SluiceError as error:
            log.warning("rollback_failed", reason=str(error))
            self._decided.set_exception(error)

    async def superseded_by(self, number: int) -> None:
        """Removes files set aside by rollbacks that the complete checkpoint of version `number` has overtaken."""
        for account in self.made:
            if account.reached <= number:
                await asyncio.to_thread(rollback_files.drop_set_aside, self._files.run_dir, account.number)

    async def _make(self, to: int) -> Account:
        account, live = await self._account(to)
        book = LineageBook(self._files.run_dir / LINEAGES_FILE)
        try:
            lineage = await asyncio.to_thread(book.mint)
        except OSError as error:
            raise LaunchError(f"rollback: nothing has changed, {LINEAGES_FILE} cannot be written: {error}") from error
        account = replace(account, number=len(self.made) + 1, lineage=lineage, time_s=time.time())
        self.made = [*self.made, account]
        await self._store.roll_back(
            account.number,
            to=to,
            trained=account.groups["trained"],
            trained_tokens=account.tokens["trained"],
            meta=await asyncio.to_thread(self._meta, to),
            live=[(group.row, group.tokens, group.lost) for group in live],
        )
        for group in live:
            trace_end(self._tracer, group.row)
        log.warning("rolled_back", **asdict(account))
        self._events.emit(
            "rolled_back",
            f"back from step {account.reached} to {to}; the run goes on as lineage {lineage}",
            values={"to": float(to), "reached": float(account.reached)},
            labels={"lineage": lineage},
        )
        await bring_in_line(self._records)
        return account

    def _meta(self, to: int) -> dict[str, str]:
        """The run's state in Redis from the rollback on."""
        progress, history = self._progress, self.history
        progress.evaluations = surviving_evaluations(progress, history, run_dir=self._files.run_dir)
        if progress.state is RunState.FINISHING:
            progress.state = RunState.RUNNING
        if progress.state is RunState.FINISHED:
            progress.state, progress.reason = RunState.STOPPED, f"rolled back to step {to}"
        path = checkpoints.path_of(self._files.run_dir / "checkpoints", to)
        return {
            **progress.to_meta(),
            "rollbacks": json.dumps([asdict(account) for account in self.made]),
            "checkpoint": json.dumps({"number": to, "path": str(path)}),
        }

    async def _account(self, to: int) -> tuple[Account, list[_Live]]:
        """What a rollback would give up now. Raises NotReady when Redis has forgotten a part of the run."""
        trained, tokens = await self._records.ledger.trained_since(to)
        live = [group async for group in self._live_since(to)]
        groups = {was: sum(group.was == was for group in live) for was in ("assigned", "queued", "open")}
        live_tokens = {was: sum(group.tokens for group in live if group.was == was) for was in groups}
        folder = self._files.run_dir / "checkpoints"
        aside = sorted(step for step in await asyncio.to_thread(lambda: list(checkpoints.steps(folder))) if step > to)
        return Account(
            to=to,
            reached=self._progress.trained_steps,
            groups={"trained": trained, **groups},
            tokens={"trained": tokens, **live_tokens},
            checkpoints=aside,
        ), live

    async def _live_since(self, to: int) -> AsyncIterator[_Live]:
        """Assigned groups, accepted groups with a token of a later version, open groups that have received samples.

        Open groups without samples lose nothing: they are generated again, as after any start of the coordinator.
        """
        fault = {"fault": rollback_files.fault(to)}
        for live in live_groups(self._board, self._assigner.assigned):
            group = live.group
            if isinstance(group, Group):
                if group.samples or group.lost_tokens:
                    row = live.row(term="rollback") | fault
                    yield _Live(was="open", row=row, tokens=group.response_tokens, lost=group.lost_tokens)
                continue
            if live.state == "queued":
                payload = await self._store.payload(group.group_id)
                if payload is None or self._records.codec.newest_version(payload) <= to:
                    continue
            yield _Live(was=live.state, row=live.row(term="rollback") | fault, tokens=group.tokens)

    def _fault(self, step: int) -> str:
        """Why the run cannot go back to the checkpoint; empty when the run can."""
        path = checkpoints.path_of(self._files.run_dir / "checkpoints", step)
        try:
            checkpoints.verify(path)
            given_up = is_given_up(checkpoints.lineage_of(path), step, self.history)
        except ValueError as error:
            return str(error)
        return f"{path}: it was rolled back itself" if given_up else ""

    def _that_verify(self) -> list[int]:
        steps = sorted(checkpoints.steps(self._files.run_dir / "checkpoints"))
        return [step for step in steps if not self._fault(step)]


async def bring_in_line(records: Records) -> list[Account]:
    """The rollbacks of the run, oldest first, after finishing the work that a killed coordinator left undone.

    A rollback that Redis has forgotten stands in RUN/rollbacks.jsonl. Redis then knows nothing later than the rollback, and
    is emptied, to be filled again from the files and the learner's record (repair.py). Raises LaunchError when a file is in
    the way.
    """
    store, files = records.store, records.files
    decided = [Account(**entry) for entry in json.loads((await store.meta()).get("rollbacks", "[]"))]
    recorded = [Account(**line) for line in await asyncio.to_thread(rollback_files.recorded, files.run_dir)]
    if len(recorded) > len(decided):
        log.warning("rollback_forgotten", known=len(decided), made=len(recorded), consequence="redis is filled again")
        await store.forget(len(recorded), rollbacks=json.dumps([asdict(account) for account in recorded]))
        decided = recorded
    try:
        for account in decided[len(recorded) :]:
            await asyncio.to_thread(rollback_files.give_up, files.run_dir, number=account.number, to=account.to)
            await files.mark_rolled_back(since=account.to, fault=rollback_files.fault(account.to))
            await records.ledger.flush()
            await asyncio.to_thread(rollback_files.record, files.run_dir, asdict(account))
        await asyncio.to_thread(rollback_files.set_aside_late, files.run_dir, history(decided))
    except OSError as error:
        raise LaunchError(
            f"rollback: it is decided, but the files could not follow: {error}; mend that and start the run, which goes on "
            "with it"
        ) from error
    return decided


def surviving_evaluations(progress: Progress, history: Sequence[Rollback], *, run_dir: Path) -> list[EvaluationResult]:
    """The evaluations of versions that no rollback has given up.

    Where a long run's newest ones are given up, RUN/metrics.jsonl has those before them. Blocking.
    """
    known = progress.evaluations
    kept = [one for one in known if not is_given_up(one.version.lineage, one.version.number, history)]
    if len(kept) == len(known) or len(known) < KEPT_EVALUATIONS:
        return kept
    again = Progress()
    for line in past(run_dir):
        if line.get("kind") == "eval" and not is_given_up(line.get("lineage", FIRST), line["version"], history):
            again.evaluated(EvaluationResult.from_line(line))
    return again.evaluations


def history(made: Sequence[Account]) -> list[Rollback]:
    """The rollbacks in the form that decides which versions were given up, oldest first."""
    return [Rollback(to=account.to, lineage=account.lineage) for account in made]
