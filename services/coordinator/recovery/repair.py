"""Repairs a Redis that has forgotten writes: the learner's trained steps are booked again before anything is assigned.

Redis is in a state of some earlier moment, or empty. Three records know more, in this order: the ledger's files (groups that
ended), the learner's statement (the steps since the checkpoint before its newest one), the batch files (their groups). A
repair runs once in a coordinator's life, when the first learner registers: nothing was admitted yet, and a Redis that
forgets later ends the process (redis_store.py). Every part may be broken off; the next coordinator then completes the
repair. A repair of millions of groups takes minutes, more than a call may take, so it is a task of its own.

 who waits         for what             unblocked by
 a learner's call  a repair under way   the repair's end; ANSWER_AFTER_S, then Busy says how far the repair is
 `close`           a repair under way   the repair's end
"""

import asyncio
import time
from collections.abc import Collection, Container
from dataclasses import asdict, dataclass, field

import structlog

from services.coordinator.groups.admitter import Admitter
from services.coordinator.groups.assignment import Assigner
from services.coordinator.recovery.ended_groups import EndedGroups
from services.coordinator.state.group import Group, QueuedGroup, admission_of
from services.coordinator.state.learner_history import MAX_STEPS, Statement, TrainedStep
from services.coordinator.state.ledger_row import accepted_info, queued_row
from services.coordinator.state.progress import RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.run_files import BatchFile
from sluice.errors import Busy, NotFound, NotReady, Unavailable
from sluice.limits import ANSWER_AFTER_S
from sluice.policy_version import PolicyVersion
from sluice.report.metrics import past
from sluice.run_dir.batch_file import batch_files

log = structlog.get_logger(__name__)

REPAIRED = "repaired: booked from the learner's record, Redis had forgotten it"
"""The `fault` in the ledger row of a group that a repair has booked."""

REPAIRS_FILE = "repairs.jsonl"

STEPS_AT_ONCE = 256
"""Steps that are booked in one round trip: a Redis that syncs every write takes milliseconds for each."""


@dataclass(kw_only=True, slots=True)
class Account:
    """The account of one repair; a line of RUN/repairs.jsonl."""

    trained_steps: list[int] = field(default_factory=list)
    """Steps that were booked as trained."""
    unknown_steps: list[int] = field(default_factory=list)
    """Steps that were trained on groups that no record names."""
    assigned_steps: list[int] = field(default_factory=list)
    """Steps whose batch was assigned again from its file."""
    ended_groups: int = 0
    """Number of groups that were ended again from the ledger's files."""
    generated_again: list[dict[str, str]] = field(default_factory=list)
    """Groups, with prompts, that Redis forgot and no step trained; they are generated again under their former ids."""

    @property
    def empty(self) -> bool:
        """Whether nothing had to be repaired."""
        return not any(asdict(self).values())


class Repair:
    """Compares a learner's statement with Redis, and repairs Redis."""

    def __init__(self, run: RunContext, records: Records, *, admitter: Admitter, assigner: Assigner) -> None:
        self._config, self._run_id, self._events = run.config, run.run_id, run.events
        self._board, self._progress = run.board, run.progress
        self._store, self._files, self._codec = records.store, records.files, records.codec
        self._admitter, self._assigner = admitter, assigner
        self._one_at_a_time = asyncio.Lock()
        self._done = self._closed = False
        self._under_way: asyncio.Task[None] | None = None
        self._account = Account()
        self._on_disk: Collection[int] = ()
        """Steps with a batch file when the repair began: a run has few, and may have trained a million steps."""

    async def learner_states(self, stated: Statement) -> None:
        """Repairs Redis. Raises NotReady for a learner that contradicts this run, or that is ahead by steps it cannot name;
        Busy while the repair goes on."""
        while True:
            async with self._one_at_a_time:
                if self._closed:
                    raise Unavailable("register: the run is being rolled back; call again")
                if self._under_way is None:
                    await self._check(stated)
                    if self._done:
                        return
                    self._under_way = asyncio.create_task(self._to_the_end(stated), name="repair")
                    self._under_way.add_done_callback(_tell_failure)
            await self._until_done(self._under_way)

    async def _until_done(self, repair: "asyncio.Task[None]") -> None:
        await asyncio.wait([repair], timeout=ANSWER_AFTER_S)
        if not repair.done():
            raise Busy(
                "register: the coordinator repairs this run's Redis, which had forgotten writes, from the run directory: "
                f"{self._account.ended_groups} groups are booked again; the repair goes on"
            )
        repair.result()

    async def _to_the_end(self, stated: Statement) -> None:
        self._progress.repairing = True
        try:
            await self._repair(stated)
        finally:
            self._progress.repairing, self._under_way = False, None

    async def close(self) -> None:
        """Hears no learner from now on; waits for a repair under way."""
        async with self._one_at_a_time:
            self._closed = True
        if self._under_way is not None:
            await asyncio.wait([self._under_way])

    async def break_off(self) -> None:
        """Ends a repair under way with the process; the next coordinator completes the repair."""
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.wait([self._under_way])

    async def _check(self, stated: Statement) -> None:
        for said in stated.steps:
            for group_id in said.group_ids:
                if admission_of(group_id, run_id=self._run_id) is None:
                    raise NotReady(
                        f"register: the learner trained group {group_id!r} in step {said.step}, which is not of run "
                        f"{self._run_id}; give it a checkpoint of this run"
                    )
            batch = await self._store.record("batch", said.step)
            if batch is not None and batch["digest"] != said.batch_digest:
                raise _contradiction(said.step, "batch", theirs=said.batch_digest, ours=batch["digest"])
            made = await self._store.record("commit", said.step)
            if made is None or not said.committed or made["lineage"] != said.version.lineage:
                continue  # an inexact replay has a lineage of its own
            if said.weights_digest and made["digest"] not in ("", said.weights_digest):
                raise _contradiction(said.step, "weights", theirs=said.weights_digest, ours=made["digest"])
        known, number = self._progress.trained_steps, stated.version.number
        if number <= known or (stated.steps and not self._done):
            return
        if (
            number > known + 1 or await self._store.record("batch", known) is None
        ):  # otherwise the step's commit is on the way
            raise NotReady(
                f"register: the learner holds version {number}, but this run's Redis knows of {known} trained steps and the "
                "learner does not say what it trained since. Put the data of Redis back, or start a new run directory"
            )

    async def _repair(self, stated: Statement) -> None:
        """Repairs in an order in which a killed repair leaves every record that the next coordinator's repair needs."""
        account = self._account = Account()
        before = await self._store.rows_in_files()
        ended = EndedGroups(self._run_id)
        async for rows in self._files.ended_groups(after=before):
            ended.add(rows)
        trained = range(self._progress.trained_steps, stated.version.number)
        self._on_disk = {step for step, _ in batch_files(self._files.run_dir)}
        for step in trained[max(0, self._board.next_step - trained.start) :]:
            await self._assign_as_trained(step, stated.of(step), ended, account)
        await self._assign_from_files(ended, account)
        await self._generate_again(stated, ended, account)
        # Before the rows count: a repair after a broken-off one does not read counted rows again.
        for group_id in [*self._board.queued, *self._board.open]:
            if group_id in ended:
                self._take_off_the_board(group_id)
        async for rows in self._files.ended_groups(after=before):
            account.ended_groups += await self._store.rebook(before, rows)
            before += len(rows)
        await self._commit_all(trained, stated, ended, account)
        if self._progress.trained_steps and self._progress.state is RunState.STARTING:
            self._progress.remember(await asyncio.to_thread(past, self._files.run_dir))
        if not account.empty:
            await self._tell(stated.version, account)
        self._done = True

    async def _assign_as_trained(
        self, step: int, said: TrainedStep | None, ended: EndedGroups, account: Account
    ) -> None:
        """Assigns the batch of a step that the learner has trained and that Redis does not know."""
        batch = await self._batch_file(step, said)
        in_file = (
            {} if batch is None else {group.group_id: group for group in map(self._codec.accepted, batch.payloads)}
        )
        ids = list(in_file) if said is None else list(said.group_ids)
        digest = said.batch_digest if said is not None else batch.digest if batch is not None else ""
        if ids:
            groups = [self._known(group_id, in_file) for group_id in ids if group_id not in ended]
            await self._restore(step, ids, digest, groups)
        else:
            self._board.next_step = step + 1
            if not ended.trained_in(step):
                account.unknown_steps.append(step)
        if said is not None and not said.committed:
            account.assigned_steps.append(step)

    async def _commit_all(self, steps: range, stated: Statement, ended: EndedGroups, account: Account) -> None:
        """Books the steps in their order, many at once while all their groups are in files."""
        known = (step for step in steps if stated.of(step) is not None or self._assigner.assigned.get(step))
        first_known = next(known, steps.stop)
        for first in range(steps.start, first_known, STEPS_AT_ONCE):
            some = range(first, min(first + STEPS_AT_ONCE, first_known))
            booked = (self._commit(step, stated, ended, account) for step in some)
            for error in await asyncio.gather(*booked, return_exceptions=True):
                if error is not None:
                    raise error
        for step in range(first_known, steps.stop):
            await self._commit(step, stated, ended, account)

    async def _commit(self, step: int, stated: Statement, ended: EndedGroups, account: Account) -> None:
        """Books step `step`, unless the step's commit is on the way."""
        said, newest = stated.of(step), stated.version
        if not said.committed if said is not None else step == newest.number - 1:
            return
        groups = [group for group in self._assigner.assigned.pop(step, []) if group.group_id not in ended]
        lineage, digest = (newest.lineage, "") if said is None else (said.version.lineage, said.weights_digest)
        await self._store.commit(
            step,
            record={"lineage": lineage or newest.lineage, "number": step + 1, "digest": digest},
            tokens=sum(group.tokens for group in groups),
            rows={
                group.group_id: queued_row(group, term="trained", step=step) | {"fault": REPAIRED} for group in groups
            },
        )
        self._progress.trained_steps, self._progress.version = step + 1, newest
        account.trained_steps.append(step)

    async def _batch_file(self, step: int, said: TrainedStep | None) -> BatchFile | None:
        if step not in self._on_disk:
            return None
        try:
            batch = await self._files.read_batch(step)
        except NotFound:
            return None
        if said is not None and batch.digest != said.batch_digest:
            log.warning("batch_file_is_not_what_was_trained", step=step, consequence="this step cannot be replayed")
            return None
        return batch

    def _known(self, group_id: str, in_file: dict[str, QueuedGroup]) -> QueuedGroup:
        """The known facts of a trained group; at worst only its id."""
        if known := self._board.queued.get(group_id) or in_file.get(group_id):
            return known
        admission, still_open = admission_of(group_id, run_id=self._run_id), self._board.open.get(group_id)
        assert admission is not None
        return QueuedGroup(
            group_id=group_id,
            admission=admission,
            oldest_version=-1,
            tokens=0,
            payload_bytes=0,
            prompt_id=still_open.prompt.prompt_id if still_open else "",
            attempt=0,
            shaped_mean=0.0,
        )

    async def _restore(self, step: int, ids: list[str], digest: str, groups: list[QueuedGroup]) -> None:
        parts = [(group.group_id, accepted_info(group), group.tokens) for group in groups]
        await self._store.restore_batch(step, record={"ids": ids, "digest": digest}, groups=parts)
        for group in groups:
            self._take_off_the_board(group.group_id)
        self._assigner.assigned[step], self._board.next_step = groups, step + 1

    def _take_off_the_board(self, group_id: str) -> None:
        live = self._board.queued.get(group_id) or self._board.open.get(group_id)
        if live is not None:
            self._board.remove(live)
        if isinstance(live, Group):
            self._admitter.tell_sampler(live)

    async def _assign_from_files(self, ended: EndedGroups, account: Account) -> None:
        """Assigns batches whose files exist, because a file means that the batch was decided, while all its groups are live."""
        while self._board.next_step < self._config.run.total_steps:
            step = self._board.next_step
            batch = await self._batch_file(step, None)
            groups = [] if batch is None else [self._codec.accepted(payload) for payload in batch.payloads]
            if batch is None or not all(self._is_live(group, ended) for group in groups):
                return
            await self._restore(step, [group.group_id for group in groups], batch.digest, groups)
            account.assigned_steps.append(step)

    def _is_live(self, group: QueuedGroup, ended: EndedGroups) -> bool:
        """Whether the group is accepted or open, or newer than everything in Redis and without a row in the files."""
        on_board = group.group_id in self._board.open or group.group_id in self._board.queued
        return on_board or (group.admission >= self._admitter.admissions and group.group_id not in ended)

    async def _generate_again(self, stated: Statement, ended: EndedGroups, account: Account) -> None:
        """Draws forgotten prompts again: groups that no step trained are generated again under their former ids."""
        known = {group_id for said in stated.steps for group_id in said.group_ids}
        for step in range(max(0, self._board.next_step - MAX_STEPS), self._board.next_step):
            record = await self._store.record("batch", step)
            known |= set() if record is None else set(record["ids"])
        last = max((admission_of(group_id, run_id=self._run_id) or 0 for group_id in known), default=-1)
        last = max(last, ended.newest)
        batch = self._config.data.train_batch_size
        # No more groups can have been alive at once. Beside steps with unknown groups no id is known to be untrained.
        most = (self._board.max_staleness + 2) * batch + self._board.gen_batch_size
        groups = await self._admitter.catch_up(
            last + 1, known=_Either(known, ended), most=0 if account.unknown_steps else most
        )
        account.generated_again = [
            {"group_id": group.group_id, "prompt_id": group.prompt.prompt_id} for group in groups
        ]

    async def _tell(self, version: PolicyVersion, account: Account) -> None:
        """Writes the account to RUN/repairs.jsonl, and the numbers to the log and the event stream."""
        line = {"time_s": time.time(), "version": version.number, **asdict(account)}
        await self._files.append(REPAIRS_FILE, line, synced=True)
        await self._store.set_meta(self._progress.to_meta())
        counts = {
            name: float(value if isinstance(value, int) else len(value)) for name, value in asdict(account).items()
        }
        message = (
            f"redis knew less than learner and run directory: {len(account.trained_steps)} steps booked as trained, "
            f"{len(account.assigned_steps)} assigned again, {account.ended_groups} groups ended again, "
            f"{len(account.generated_again)} generated again, {len(account.unknown_steps)} steps of unknown groups; "
            f"{REPAIRS_FILE} names them"
        )
        log.warning("store_repaired", **counts)
        self._events.emit("store_repaired", message, values=counts)


def _tell_failure(repair: "asyncio.Task[None]") -> None:
    """The log hears of it even where no call waits for the repair just then."""
    if not repair.cancelled() and (error := repair.exception()) is not None:
        log.warning("repair_failed", reason=str(error), consequence="the learner's next call begins it again")


@dataclass(frozen=True, slots=True)
class _Either:
    """The groups in one or the other."""

    one: Container[str]
    other: Container[str]

    def __contains__(self, group_id: object) -> bool:
        return str(group_id) in self.one or str(group_id) in self.other


def _contradiction(step: int, what: str, *, theirs: str, ours: str) -> NotReady:
    return NotReady(
        f"register: the learner's {what} of step {step} has digest {theirs[:12]}, this run's Redis has {ours[:12]}: they "
        "are two histories. Give the learner a checkpoint of this run, or start a new run directory"
    )
