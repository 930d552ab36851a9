"""A whole run in miniature: admission, queue, batches, commits, checkpoints, rollouts, and every accident. Pure.

A state is a value, a step of the run a function of it, so that all states can be visited (`explore`). The gate and the
choice of a batch are the real ones (board.py, sluice/dapo/staleness.py); Redis is store_model.py; the repair follows
repair.py call by call. Generation is one event, and so is training.

An operation of the coordinator is several effects - calls to Redis, files - and it may die between any two of them
(`_Work.trail`). One that is shut out rather than dead may wake at any time later: it is asked in every state what it
could still change (`zombie_harm`).
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from services.coordinator.state.board import Board
from services.coordinator.state.group import Group, QueuedGroup
from tests.unit.coordinator.store_model import (
    FENCED,
    FILTERED,
    FORGOT,
    OPEN,
    QUEUED,
    STALE,
    TRAINED,
    Batch,
    Guard,
    Redis,
    Rows,
    Rules,
    call,
    take_over,
)

PENDING = -1
"""Version of an open group that is on no rollout."""


class Setting(NamedTuple):
    """The run, how many accidents of each kind may befall it, and what a mutation breaks."""

    batch: int = 2
    gen_batch: int = 2
    staleness: int = 1
    steps: int = 2
    checkpoint_every: int = 1
    queue_groups: int = 1
    """Back-pressure: payloads that may be queued, in groups. Fewer than a batch, to see that it starves nobody."""
    rollouts: int = 1
    rejections: int = 0
    coordinator_crashes: int = 0
    coordinator_freezes: int = 0
    """It is replaced and wakes up later."""
    learner_crashes: int = 0
    rollout_crashes: int = 0
    redis_losses: int = 0
    """Back to any earlier moment of which it is decided then that it was the last one to be synced, or to nothing."""
    rules: Rules = Rules()
    pressure_spares_the_next_batch: bool = True
    record_before_file: bool = True
    """A batch is recorded before its file gets its name."""
    files_until_checkpoint: bool = True
    """A batch file is kept while a checkpoint may ask for it, not only until the step is committed."""
    repairs: bool = True
    first_admitted_first: bool = True
    """A batch takes groups in admission order."""


class Disk(NamedTuple):
    """The run directory."""

    batches: tuple[tuple[int, Batch], ...] = ()
    staged: tuple[tuple[int, Batch], ...] = ()
    """Batch files that have not got their names yet."""
    ledger: tuple[tuple[int, Rows], ...] = ()
    """(rows in the files before it, its rows)."""
    checkpoints: tuple[tuple[tuple[Batch, ...], int], ...] = ()
    """(batches trained so far, first step that it lists), oldest first."""

    def rows(self, *, until: int) -> Rows:
        """The first `until` rows in files."""
        found: Rows = ()
        for before, rows in self.ledger:
            if before == len(found):
                found += rows
        return found[:until]


class Coordinator(NamedTuple):
    """The memory of one process."""

    fence: int
    seen: int
    open: tuple[tuple[int, int, int], ...]
    """(group, version it was started with or PENDING, rollout)."""
    queued: tuple[tuple[int, int], ...]
    """(group, oldest version)."""
    next_step: int
    admissions: int
    trained: int
    learner: tuple[int, int]
    heard: bool = False
    """Whether a learner has registered with this process."""

    @property
    def guard(self) -> Guard:
        """What goes with every script."""
        return Guard(self.fence, self.seen)


class Learner(NamedTuple):
    """The memory of one process; its version is the number of batches it has trained."""

    process: int
    trained: tuple[Batch, ...]
    listed_from: int
    """First step that it remembers by name."""
    saved: int
    """Version of its newest checkpoint, 0 before the first."""
    fence: int = 0
    phase: str = "idle"
    """idle -> holds a batch -> uncommitted -> (unsaved -> saved ->) idle."""
    batch: Batch = ()

    @property
    def version(self) -> int:
        """Number of the version that it holds."""
        return len(self.trained)


class Accidents(NamedTuple):
    """How many may still happen."""

    coordinator: int
    freeze: int
    learner: int
    rollout: int
    redis: int
    rejections: int


class State(NamedTuple):
    """Everything."""

    redis: Redis
    disk: Disk
    coordinator: Coordinator | None
    learner: Learner | None
    rollouts: tuple[int, ...]
    """The version that each holds, PENDING while it has none."""
    left: Accidents
    newest_fence: int = 0
    """Ever given to a coordinator."""
    processes: int = 0
    """Learners so far."""
    zombie: Coordinator | None = None
    former_learner_fence: int = 0
    synced: Redis | None = None
    """What Redis will be after it has lost its tail; None before that is decided."""
    handed: tuple[tuple[int, Batch], ...] = ()
    """What a learner was handed first as batch k."""


class Violation(AssertionError):
    """A promise is broken."""


def start(setting: Setting) -> State:
    """Nobody is there yet."""
    return State(
        redis=Redis(),
        disk=Disk(),
        coordinator=None,
        learner=None,
        rollouts=(PENDING,) * setting.rollouts,
        left=Accidents(
            coordinator=setting.coordinator_crashes,
            freeze=setting.coordinator_freezes,
            learner=setting.learner_crashes,
            rollout=setting.rollout_crashes,
            redis=setting.redis_losses,
            rejections=setting.rejections,
        ),
    )


def is_over(state: State, setting: Setting) -> bool:
    """Every step is trained, committed and in a checkpoint."""
    coordinator, learner = state.coordinator, state.learner
    return (
        coordinator is not None
        and learner is not None
        and coordinator.heard
        and coordinator.trained == learner.version == setting.steps
        and learner.phase == "idle"
        and not _has_forgotten(state, coordinator)
    )


def successors(state: State, setting: Setting) -> Iterator[tuple[str, State]]:
    """Every event that may come next, and what is then."""
    if is_over(state, setting):
        return
    yield from _coordinator_events(state, setting)
    yield from _learner_events(state, setting)
    for place, version in enumerate(state.rollouts):
        newest = state.learner.version if state.learner is not None else PENDING
        if newest > version and state.coordinator is not None and state.coordinator.heard:
            yield f"push {place}", state._replace(rollouts=_put(state.rollouts, place, newest))
    yield from _accidents(state, setting)


# --- the coordinator -------------------------------------------------------------------------------------------------


class _Work:
    """One operation of a coordinator, effect by effect."""

    def __init__(self, state: State, setting: Setting) -> None:
        assert state.coordinator is not None
        self.state, self.setting = state, setting
        self.redis, self.disk, self.memory = state.redis, state.disk, state.coordinator
        self.trail: list[tuple[Redis, Disk]] = []
        self.calls: list[tuple[str, tuple, object]] = []
        self.ended = False
        """It found that it was shut out, or that Redis has forgotten."""

    def run(self, name: str, *args: object) -> object:
        """A script."""
        if self.ended:
            return None
        self.redis, answer = call(self.redis, self.memory.guard, name, args, rules=self.setting.rules)
        self.calls.append((name, args, answer))
        if answer in (FENCED, FORGOT):
            self.ended = True
            return None
        if answer == "NOTQUEUED":
            raise Violation(f"{name}{args}: a group of the batch is not queued")
        self.memory = self.memory._replace(seen=max(self.memory.seen, self.redis.writes))
        self.trail.append((self.redis, self.disk))
        return answer

    def write(self, disk: Disk) -> None:
        """A change of the run directory."""
        if not self.ended:
            self.disk = disk
            self.trail.append((self.redis, self.disk))

    def results(self, label: str, **changes: object) -> Iterator[tuple[str, State]]:
        """The operation done, and broken off after each of its effects but the last."""
        memory = None if self.ended else self.memory
        yield label, self.state._replace(redis=self.redis, disk=self.disk, coordinator=memory, **changes)  # type: ignore[arg-type]
        if self.state.left.coordinator:
            left = self.state.left._replace(coordinator=self.state.left.coordinator - 1)
            for number, (redis, disk) in enumerate(self.trail[:-1]):
                broken = self.state._replace(redis=redis, disk=disk, coordinator=None, left=left)
                yield f"{label}, killed after effect {number}", broken


def _coordinator_events(state: State, setting: Setting) -> Iterator[tuple[str, State]]:
    coordinator = state.coordinator
    if coordinator is None:
        yield "a coordinator starts", _opened(state, setting)
        return
    if _has_forgotten(state, coordinator):
        work = _Work(state, setting)
        work.run("confirm")
        yield from work.results("redis forgot: the coordinator ends")
        return
    if not coordinator.heard:
        return
    board = board_of(coordinator, setting)
    if _may_admit(board, coordinator, setting):
        for place in _rollouts_for(board, state, coordinator.admissions):
            work, group = _Work(state, setting), coordinator.admissions
            work.run("admit", group)
            entry = (group, state.rollouts[place], place)
            work.memory = work.memory._replace(open=(*coordinator.open, entry), admissions=group + 1)
            yield from work.results(f"admit {group}")
    for group, version, _ in coordinator.open:
        if version == PENDING:
            for place in _rollouts_for(board, state, group):
                placed = _set_open(coordinator, group, (group, state.rollouts[place], place))
                yield f"place {group}", state._replace(coordinator=placed)
            continue
        yield from _verdicts(state, setting, group, version)


def _opened(state: State, setting: Setting) -> State:
    """A new process takes over and reads what Redis has."""
    redis = take_over(state.redis, newest=state.newest_fence, rules=setting.rules)
    memory = Coordinator(
        fence=redis.fence,
        seen=0,
        open=tuple((group, PENDING, PENDING) for group, where, _ in redis.live if where == OPEN),
        queued=tuple((group, oldest) for group, where, oldest in redis.live if where == QUEUED),
        next_step=redis.last_batch + 1,
        admissions=redis.admissions,
        trained=max(redis.commits, default=-1) + 1,
        learner=redis.learner,
    )
    return state._replace(redis=redis, coordinator=memory, newest_fence=max(state.newest_fence, redis.fence))


def _verdicts(state: State, setting: Setting, group: int, version: int) -> Iterator[tuple[str, State]]:
    """The samples of a group arrive and are judged."""
    coordinator = state.coordinator
    assert coordinator is not None
    rest = tuple(entry for entry in coordinator.open if entry[0] != group)
    work = _Work(state, setting)
    if coordinator.next_step - version > setting.staleness:
        work.run("end", group, OPEN, STALE)
        work.memory = work.memory._replace(open=rest)
    else:
        work.run("accept", group, version)
        work.memory = work.memory._replace(open=rest, queued=tuple(sorted((*coordinator.queued, (group, version)))))
    yield from work.results(f"keep {group}")
    if state.left.rejections:
        work = _Work(state, setting)
        work.run("end", group, OPEN, FILTERED)
        work.memory = work.memory._replace(open=rest)
        left = state.left._replace(rejections=state.left.rejections - 1)
        yield from work.results(f"reject {group}", left=left)


def _may_admit(board: Board, coordinator: Coordinator, setting: Setting) -> bool:
    """conductor.py: room, need, back-pressure."""
    rank = board.rank(coordinator.admissions)
    pressed = len(coordinator.queued) >= setting.queue_groups
    if setting.pressure_spares_the_next_batch:
        pressed = pressed and rank >= setting.batch
    return board.has_room() and coordinator.next_step + rank // setting.batch < setting.steps and not pressed


def _rollouts_for(board: Board, state: State, group: int) -> list[int]:
    """Where a group may start; of several that hold the same version, the first."""
    places: dict[int, int] = {}
    for place, version in enumerate(state.rollouts):
        if version != PENDING and board.may_start(admission=group, version=version):
            places.setdefault(version, place)
    return list(places.values())


def board_of(coordinator: Coordinator, setting: Setting) -> Board:
    """The real board of what a coordinator has in memory."""
    return _board(coordinator.open, coordinator.queued, coordinator.next_step, setting)


@lru_cache(maxsize=100_000)
def _board(open_: tuple, queued: tuple, next_step: int, setting: Setting) -> Board:
    made = Board(train_batch_size=setting.batch, gen_batch_size=setting.gen_batch, max_staleness=setting.staleness)
    made.next_step = next_step
    for group, version, _ in open_:
        made.add(
            Group(
                group_id=str(group),
                admission=group,
                prompt=None,  # type: ignore[arg-type]
                cursor="",
                start_version=None if version == PENDING else version,
            )
        )
    for group, oldest in queued:
        made.restore(
            QueuedGroup(
                group_id=str(group),
                admission=group,
                oldest_version=oldest,
                tokens=0,
                payload_bytes=0,
                prompt_id="",
                attempt=1,
                shaped_mean=0.0,
            )
        )
    return made


def choice(coordinator: Coordinator, setting: Setting) -> Batch | None:
    """The batch that would be assigned now; None while it is not full or waits for groups in flight."""
    found = board_of(coordinator, setting).choose()
    if found.expired and setting.staleness > 0:
        raise Violation(f"accepted groups {[group.admission for group in found.expired]} are too old for any step")
    if not setting.first_admitted_first:
        youngest = sorted(coordinator.queued, reverse=True)[: setting.batch]
        return tuple(group for group, _ in youngest) if len(youngest) == setting.batch else None
    if len(found.chosen) < setting.batch or found.wait_for:
        return None
    return tuple(group.admission for group in found.chosen)


def _batch_for_learner(work: _Work, step: int) -> Batch | None:
    """assignment.py: what is recorded, else a new batch; None while there is none."""
    recorded = work.redis.batch(step)
    if recorded is None or not work.setting.rules.assign_once:
        if step != work.memory.next_step and recorded is None:
            return None
        _drop_surplus(work)
        chosen = choice(work.memory, work.setting)
        if chosen is None:
            return None
        _assign(work, step, chosen)
        return chosen
    if _of(work.disk.batches, step) != recorded:
        if _of(work.disk.staged, step) != recorded:
            raise Violation(f"batch {step} is {recorded}, its file {_of(work.disk.batches, step)}")
        work.write(_named(work.disk, step))
    return recorded


def _assign(work: _Work, step: int, chosen: Batch) -> None:
    if work.setting.record_before_file:
        work.write(work.disk._replace(staged=_with(work.disk.staged, step, chosen)))
        work.run("assign", step, chosen)
        if not work.ended:
            work.write(_named(work.disk, step))
    else:
        work.write(work.disk._replace(batches=_with(work.disk.batches, step, chosen)))
        work.run("assign", step, chosen)
    queued = tuple(entry for entry in work.memory.queued if entry[0] not in chosen)
    work.memory = work.memory._replace(queued=queued, next_step=step + 1)
    _drop_surplus(work)


def _drop_surplus(work: _Work) -> None:
    """Without staleness, what is left of a batch cannot be trained; it is counted as stale here."""
    if work.setting.staleness == 0:
        for group in board_of(work.memory, work.setting).choose().expired:
            work.run("end", group.admission, QUEUED, STALE)
            _take_off(work, (group.admission,))


def _named(disk: Disk, step: int) -> Disk:
    """The staged file of a batch gets its name."""
    staged = _of(disk.staged, step)
    assert staged is not None
    others = tuple(entry for entry in disk.staged if entry[0] != step)
    return disk._replace(batches=_with(disk.batches, step, staged), staged=others)


# --- the learner -----------------------------------------------------------------------------------------------------


def _learner_events(state: State, setting: Setting) -> Iterator[tuple[str, State]]:
    learner, coordinator = state.learner, state.coordinator
    if learner is None:
        process = state.processes + 1
        trained, listed_from = state.disk.checkpoints[-1] if state.disk.checkpoints else ((), 0)
        made = Learner(process=process, trained=trained, listed_from=listed_from, saved=len(trained))
        yield "a learner starts", state._replace(learner=made, processes=process)
        return
    if learner.phase == "holds":
        trained = (*learner.trained, learner.batch)
        done = learner._replace(trained=trained, batch=(), phase="uncommitted")
        yield f"train {learner.version}", state._replace(learner=done)
    if learner.phase == "unsaved":
        yield f"save {learner.version}", _saved(state, learner)
    if coordinator is None or _has_forgotten(state, coordinator):
        return
    if not coordinator.heard or coordinator.learner != (learner.fence, learner.process):
        yield from _register(state, setting, learner)
    elif learner.phase == "idle" and learner.version < setting.steps:
        yield from _get_batch(state, setting, learner)
    elif learner.phase == "uncommitted":
        yield from _commit_step(state, setting, learner)
    elif learner.phase == "saved":
        yield from _commit_checkpoint(state, setting, learner)


def _get_batch(state: State, setting: Setting, learner: Learner) -> Iterator[tuple[str, State]]:
    work, step = _Work(state, setting), learner.version
    batch = _batch_for_learner(work, step)
    if batch is None:
        if work.trail:
            yield from work.results("surplus is dropped")
        return
    first = _of(state.handed, step)
    if first is not None and first != batch and not work.ended:
        raise Violation(f"batch {step} was {first} and is now {batch}")
    handed = state.handed if first is not None or work.ended else _with(state.handed, step, batch)
    holds = learner if work.ended else learner._replace(phase="holds", batch=batch)
    yield from work.results(f"batch {step}", learner=holds, handed=handed)


def _commit_step(state: State, setting: Setting, learner: Learner) -> Iterator[tuple[str, State]]:
    """commits.py: the rows of a step that is trained again were written the first time."""
    work, step = _Work(state, setting), learner.version - 1
    batch = work.redis.batch(step)
    if batch is None:
        raise Violation(f"step {step} is to be committed and its batch is not known")
    fresh = step >= work.memory.trained or not setting.rules.commit_once
    live = tuple(group for group in batch if work.redis.state_of(group) is not None or not setting.rules.commit_once)
    work.run("commit", step, live if fresh else ())
    work.memory = work.memory._replace(trained=max(work.memory.trained, step + 1))
    if not setting.files_until_checkpoint:
        work.write(work.disk._replace(batches=tuple(entry for entry in work.disk.batches if entry[0] > step)))
    last = learner.version == setting.steps
    due = (last or learner.version % setting.checkpoint_every == 0) and learner.saved != learner.version
    done = learner if work.ended else learner._replace(phase="unsaved" if due else "idle")
    yield from work.results(f"commit {step}", learner=done)


def _saved(state: State, learner: Learner) -> State:
    """A checkpoint is on disk; it lists the steps since the one before, and so does the learner from now on."""
    made = (learner.trained, learner.saved)
    disk = state.disk._replace(checkpoints=(*state.disk.checkpoints[-1:], made))
    after = learner._replace(phase="saved", listed_from=learner.saved, saved=learner.version)
    return state._replace(disk=disk, learner=after)


def _commit_checkpoint(state: State, setting: Setting, learner: Learner) -> Iterator[tuple[str, State]]:
    work = _Work(state, setting)
    before, rows = work.redis.rows_in_files, work.redis.rows
    in_file = _of(work.disk.ledger, before) or ()
    if rows and len(in_file) <= len(rows):
        work.write(work.disk._replace(ledger=_with(work.disk.ledger, before, rows)))
        work.run("drop_rows", before, len(rows))
    oldest = len(work.disk.checkpoints[0][0])
    work.write(work.disk._replace(batches=tuple(entry for entry in work.disk.batches if entry[0] >= oldest)))
    done = learner if work.ended else learner._replace(phase="idle")
    yield from work.results(f"commit the checkpoint of {learner.version}", learner=done)


# --- registration and repair -----------------------------------------------------------------------------------------


def _register(state: State, setting: Setting, learner: Learner) -> Iterator[tuple[str, State]]:
    work = _Work(state, setting)
    if not work.memory.heard and setting.repairs:
        _repair(work, learner)
    elif not work.memory.heard:
        work.memory = work.memory._replace(trained=max(work.memory.trained, learner.version))
        work.memory = work.memory._replace(next_step=max(work.memory.next_step, learner.version))
    fence, process = work.memory.learner
    if process != learner.process:
        fence = max(fence + 1, work.memory.fence if setting.rules.fences_outlast_a_loss else 0)
    work.run("set_learner", fence, learner.process)
    work.memory = work.memory._replace(learner=(fence, learner.process), heard=True)
    after = learner if work.ended else learner._replace(fence=fence)
    yield from work.results(f"learner {learner.process} registers", learner=after)


def _repair(work: _Work, learner: Learner) -> None:
    """repair.py."""
    before = work.redis.rows_in_files
    parts: list[Rows] = []
    reached = before
    while (part := _of(work.disk.ledger, reached)) is not None:
        parts.append(part)
        reached += len(part)
    rows = {group: term for part in parts for group, term in part}
    assigned: dict[int, Batch] = {}
    trained = range(work.memory.trained, learner.version)
    for step in trained[max(0, work.memory.next_step - trained.start) :]:
        ids = learner.trained[step] if step >= learner.listed_from else _of(work.disk.batches, step)
        if ids is None:
            work.memory = work.memory._replace(next_step=step + 1)
        else:
            assigned[step] = _restore(work, step, ids, rows)
    while work.memory.next_step < work.setting.steps:
        step = work.memory.next_step
        ids = _of(work.disk.batches, step)
        if ids is None or not all(_is_live(work.memory, group, rows) for group in ids):
            break
        _restore(work, step, ids, rows)
    _generate_again(work, learner, rows)
    for part in parts:
        work.run("rebook", before, part)
        before += len(part)
    _take_off(work, tuple(rows))
    for step in trained:
        if step == learner.version - 1 and learner.phase == "uncommitted":
            continue
        ids = assigned[step] if step in assigned else work.redis.batch(step) or ()
        work.run("commit", step, tuple(group for group in ids if work.redis.state_of(group) is not None))
        work.memory = work.memory._replace(trained=step + 1)


def _restore(work: _Work, step: int, ids: Batch, rows: dict[int, str]) -> Batch:
    """A batch that Redis forgot is assigned; its groups that are in no file."""
    groups = tuple(group for group in ids if group not in rows)
    versions = dict(work.memory.queued)
    work.run("restore_batch", step, ids, tuple((group, versions.get(group, -1)) for group in groups))
    _take_off(work, groups)
    work.memory = work.memory._replace(next_step=step + 1)
    return groups


def _take_off(work: _Work, groups: Batch) -> None:
    work.memory = work.memory._replace(
        open=tuple(entry for entry in work.memory.open if entry[0] not in groups),
        queued=tuple(entry for entry in work.memory.queued if entry[0] not in groups),
    )


def _is_live(memory: Coordinator, group: int, rows: dict[int, str]) -> bool:
    on_board = any(group == entry[0] for entry in (*memory.open, *memory.queued))
    return on_board or (group >= memory.admissions and group not in rows)


def _generate_again(work: _Work, learner: Learner, rows: dict[int, str]) -> None:
    known = {*rows, *(group for batch in learner.trained[learner.listed_from :] for group in batch)}
    known |= {group for _, ids in work.redis.batches for group in ids}
    until = max(known, default=-1) + 1
    if work.memory.admissions >= until:
        return
    for group in range(work.memory.admissions, until):
        if group not in known:
            work.run("admit", group)
            work.memory = work.memory._replace(open=(*work.memory.open, (group, PENDING, PENDING)))
    work.run("set_admissions", until)
    work.memory = work.memory._replace(admissions=until)


# --- accidents -------------------------------------------------------------------------------------------------------


def _accidents(state: State, setting: Setting) -> Iterator[tuple[str, State]]:
    left, coordinator, learner = state.left, state.coordinator, state.learner
    if left.coordinator and coordinator is not None:
        yield (
            "the coordinator dies",
            state._replace(coordinator=None, left=left._replace(coordinator=left.coordinator - 1)),
        )
    if left.freeze and coordinator is not None:
        frozen = left._replace(freeze=left.freeze - 1)
        yield "the coordinator freezes", state._replace(coordinator=None, zombie=coordinator, left=frozen)
    if left.learner and learner is not None:
        died = left._replace(learner=left.learner - 1)
        yield "the learner dies", state._replace(learner=None, former_learner_fence=learner.fence, left=died)
    if left.rollout:
        for place, version in enumerate(state.rollouts):
            if version != PENDING:
                yield f"rollout {place} dies", _without_rollout(state, place)
    if left.redis and state.synced is None:
        yield "the append-only file is synced for the last time", state._replace(synced=state.redis)
        yield "redis comes back empty", _lost(state, Redis())
    if left.redis and state.synced is not None and state.synced != state.redis:
        yield "redis comes back without its tail", _lost(state, state.synced)


def _lost(state: State, redis: Redis) -> State:
    return state._replace(redis=redis, synced=None, left=state.left._replace(redis=state.left.redis - 1))


def _without_rollout(state: State, place: int) -> State:
    """What it generated is to be generated again."""
    coordinator = state.coordinator
    if coordinator is not None:
        pending = tuple(
            (group, PENDING, PENDING) if at == place else (group, v, at) for group, v, at in coordinator.open
        )
        coordinator = coordinator._replace(open=pending)
    left = state.left._replace(rollout=state.left.rollout - 1)
    return state._replace(rollouts=_put(state.rollouts, place, PENDING), coordinator=coordinator, left=left)


# --- promises --------------------------------------------------------------------------------------------------------


def check(state: State, setting: Setting) -> None:
    """What holds in every state. Raises Violation."""
    redis = state.redis
    counted = dict(zip(("admitted", "open", "queued", "assigned"), redis.counters[:4], strict=True))
    ended = (*state.disk.rows(until=redis.rows_in_files), *redis.rows)
    groups = [group for group, _, _ in redis.live] + [group for group, _ in ended]
    if len(set(groups)) < len(groups):
        raise Violation(f"a group is counted twice: {sorted(groups)}")
    coordinator, learner = state.coordinator, state.learner
    knows = coordinator is not None and coordinator.heard and not _has_forgotten(state, coordinator)
    if knows and sorted(groups) != list(range(redis.admissions)):  # before, a repair may be half done
        raise Violation(f"groups {sorted(groups)} are accounted for, {redis.admissions} were admitted")
    if counted["admitted"] != len(groups) or sum(redis.counters[1:7]) != len(groups):
        raise Violation(f"the ledger does not close: {redis}")
    for place, name in enumerate((OPEN, QUEUED, "assigned"), start=1):
        if redis.counters[place] != sum(where == name for _, where, _ in redis.live):
            raise Violation(f"{name} groups are miscounted: {redis}")
    for trained in (state.learner.trained if state.learner else (), *(made for made, _ in state.disk.checkpoints)):
        ids = [group for batch in trained for group in batch]
        if len(set(ids)) < len(ids):
            raise Violation(f"trained twice: {trained}")
    if is_over(state, setting):
        _check_end(state, ended)
    if (harm := zombie_harm(state, setting)) is not None:
        raise Violation(harm)
    if learner is None or coordinator is None or coordinator.learner != (learner.fence, learner.process):
        return
    if learner.process > 1 and learner.fence == state.former_learner_fence:
        raise Violation("the former learner's fence is the newest one's")


def _check_end(state: State, ended: Rows) -> None:
    assert state.learner is not None
    history = [group for batch in state.learner.trained for group in batch]
    booked = [group for group, term in ended if term == TRAINED]
    if sorted(history) != sorted(booked):
        raise Violation(f"trained were {history}, booked as trained {booked}")


def check_event(before: State, label: str, after: State, setting: Setting) -> None:
    """What no event may do. Raises Violation."""
    if after.left.redis < before.left.redis:
        return
    terms = dict((*after.disk.rows(until=after.redis.rows_in_files), *after.redis.rows))
    for group, was, oldest in before.redis.live:
        now = after.redis.state_of(group)
        surplus = setting.staleness == 0 and was == QUEUED and terms.get(group) == STALE
        if was != OPEN and now is None and terms.get(group) != TRAINED and not surplus:
            raise Violation(f"{label}: accepted group {group} has become {terms.get(group)}")
        if was == "assigned" and now in (OPEN, QUEUED):
            raise Violation(f"{label}: assigned group {group} is {now} again")
        if was == QUEUED and now == "assigned" and oldest != -1:
            step = next(step for step, ids in after.redis.batches if group in ids)
            if not 0 <= step - oldest <= setting.staleness:
                raise Violation(f"{label}: step {step} trains group {group} of version {oldest}")
    if max(after.redis.commits, default=-1) < max(before.redis.commits, default=-1):
        raise Violation(f"{label}: versions go back")
    if not label.startswith("rollout") and any(
        new < old for old, new in zip(before.rollouts, after.rollouts, strict=True)
    ):
        raise Violation(f"{label}: a rollout goes back")


def zombie_harm(state: State, setting: Setting) -> str | None:
    """What a coordinator that was replaced could still change, whenever it wakes up.

    Not looked at while Redis has forgotten the one that replaced it, which is about to find that out and to end.
    """
    zombie = state.zombie
    coordinator = state.coordinator
    if zombie is None or coordinator is None or _has_forgotten(state, coordinator):
        return None
    for name, args in zombie_attempts(zombie):
        _, answer = call(state.redis, zombie.guard, name, args, rules=setting.rules)
        if answer not in (FENCED, FORGOT):
            return f"a coordinator that was replaced may still {name}{args}"
    batch, handed = _may_write_file(zombie, setting), _of(state.handed, zombie.next_step)
    if batch is not None and handed not in (None, batch):
        return f"a coordinator that was replaced overwrites batch {zombie.next_step}: {handed} with {batch}"
    return None


def zombie_attempts(zombie: Coordinator) -> list[tuple[str, tuple]]:
    """Scripts that a coordinator with this memory may be about to run."""
    attempts: list[tuple[str, tuple]] = [("confirm", ()), ("admit", (zombie.admissions,)), ("set_learner", (99, 99))]
    attempts += [("accept", (group, version)) for group, version, _ in zombie.open]
    return [*attempts, ("commit", (zombie.trained, ()))]


def _may_write_file(zombie: Coordinator, setting: Setting) -> Batch | None:
    """The batch whose file it would write without asking Redis first."""
    return None if setting.record_before_file else choice(zombie, setting)


# --- all states ------------------------------------------------------------------------------------------------------


class Explored(NamedTuple):
    """What `explore` saw."""

    states: int
    events: int
    ends: int
    longest: int
    """Events on the longest of the shortest paths to a state."""


def explore(setting: Setting, *, at_most: int = 400_000) -> Explored:
    """Visits every reachable state, breadth first, and shows that from each of them the end can be reached.

    Raises Violation with the shortest way to the state that breaks a promise.
    """
    first = start(setting)
    came_from: dict[State, tuple[State | None, str, int]] = {first: (None, "", 0)}
    into: dict[State, list[State]] = {}
    frontier, events = [first], 0
    while frontier:
        reached: list[State] = []
        for state in frontier:
            try:
                for label, after in successors(state, setting):
                    events += 1
                    check_event(state, label, after, setting)
                    into.setdefault(after, []).append(state)
                    if after not in came_from:
                        came_from[after] = (state, label, came_from[state][2] + 1)
                        check(after, setting)
                        reached.append(after)
            except Violation as violation:
                raise Violation(f"{violation}; after: {_way(came_from, state)}") from None
        frontier = reached
        assert len(came_from) <= at_most, f"more than {at_most} states"
    ends = [state for state in came_from if is_over(state, setting)]
    live = _reaching(ends, into)
    stuck = next((state for state in came_from if state not in live), None)
    if stuck is not None:
        raise Violation(f"the end cannot be reached any more; after: {_way(came_from, stuck)}")
    return Explored(len(came_from), events, len(ends), max(depth for _, _, depth in came_from.values()))


def _reaching(ends: list[State], into: dict[State, list[State]]) -> set[State]:
    found, todo = set(ends), list(ends)
    while todo:
        for before in into.get(todo.pop(), ()):
            if before not in found:
                found.add(before)
                todo.append(before)
    return found


def _way(came_from: dict[State, tuple[State | None, str, int]], state: State) -> str:
    labels: list[str] = []
    at: State | None = state
    while at is not None:
        at, label, _ = came_from[at]
        labels.append(label)
    return " > ".join(reversed(labels)) or "the start"


def _of(pairs: tuple, key: int):
    return next((value for found, value in pairs if found == key), None)


def _with(pairs: tuple, key: int, value: object) -> tuple:
    return tuple(sorted([*((found, other) for found, other in pairs if found != key), (key, value)]))


def _put(values: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + 1 :])


def _set_open(coordinator: Coordinator, group: int, entry: tuple[int, int, int]) -> Coordinator:
    return coordinator._replace(open=tuple(entry if found[0] == group else found for found in coordinator.open))


def _has_forgotten(state: State, coordinator: Coordinator) -> bool:
    return state.redis.writes < coordinator.seen or state.redis.fence < coordinator.fence
