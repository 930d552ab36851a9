"""Why nothing is moving: who waits for whom, since when. Pure: state in, sentences out; decides nothing.

A wait is named by a key. `Since` remembers when each key was first seen, so that no other part has to keep times; the times
are exact to the interval of the looks, and start anew with the process.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from services.coordinator.state.board import Board
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.group import Group, Phase
from services.coordinator.state.member import Role, State, needed_roles
from services.coordinator.state.places import Place
from services.coordinator.state.progress import Progress, RunState
from sluice.config.schema import Config
from sluice.run_dir.full_disk import DiskWait

KEPT_S = 5.0
"""How long an unseen key is remembered: between two long polls the learner seems to wait for nothing."""

SinceOf = Callable[[Hashable], float]
"""Seconds since a key was first seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """One wait: who waits, why and since when."""

    who: str
    """`batch 12`, `2 groups`, `learner`, `rollout-1`, `admission`, `evaluation`, `disk` or `run`."""
    why: str
    """The reason, with the setting that bounds the wait where there is such a setting."""
    since_s: float
    """Seconds that the wait has lasted."""

    def __str__(self) -> str:
        return f"{self.who} {self.why}, since {self.since_s:.0f} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """The state to look at."""

    config: Config
    progress: Progress
    board: Board
    fleet: Fleet
    assigned: Sequence[int]
    """Steps handed out and not trained."""
    admissions: int
    """Groups admitted so far, which is the number of the next group."""
    evaluating: str
    """The activity of an evaluation; empty without an evaluation."""
    disk: Sequence[DiskWait] = ()
    """The coordinator's writers that find no room."""
    no_place: Sequence[tuple[Place, float]] = ()
    """The services that have no place, with the seconds since."""
    failing: str = ""
    """Why groups fail one after the other; empty while they do not."""


@dataclass(kw_only=True, slots=True)
class Since:
    """When each key was first seen."""

    _first: dict[Hashable, float] = field(default_factory=dict)
    _last: dict[Hashable, float] = field(default_factory=dict)
    _now_s: float = 0.0

    def look(self, now_s: float) -> SinceOf:
        """Begins a look; keys that were not seen for KEPT_S are forgotten."""
        self._now_s = now_s
        for key in [key for key, last_s in self._last.items() if now_s - last_s > KEPT_S]:
            del self._first[key], self._last[key]
        return self._seen

    def _seen(self, key: Hashable) -> float:
        self._last[key] = self._now_s
        return self._now_s - self._first.setdefault(key, self._now_s)


def find_waits(situation: Situation, since: SinceOf) -> list[Wait]:
    """All present waits."""
    always = [*_disk(situation), *_places(situation), *_own(situation, since)]
    if situation.progress.state.final:
        return always
    found = [*always, *_run(situation, since), *_services(situation, since)]
    if situation.progress.state is RunState.RUNNING:
        found += [
            *_learner(situation, since),
            *_batch(situation, since),
            *_groups(situation, since),
            *_admission(situation, since),
        ]
    return found


def _disk(situation: Situation) -> Iterator[Wait]:
    for wait in situation.disk:
        yield Wait(who="disk", why=str(wait), since_s=wait.since_s)


def _places(situation: Situation) -> Iterator[Wait]:
    limit_s = situation.config.launch.place_timeout_s
    for place, since_s in situation.no_place:
        why = f"waits for a place: {place.waits_for} (launch.place_timeout_s is {limit_s:g})"
        yield Wait(who=place.service_id, why=why, since_s=since_s)


def _own(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    """What the members that are there wait for by their own account, also after the run's end: the learner exports then."""
    for member in situation.fleet.members.values():
        if member.waits_for and member.state is not State.LOST:
            yield Wait(who=member.service_id, why=member.waits_for, since_s=since((member.incarnation, "own")))


def _run(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    limits = situation.config
    if situation.progress.stop_requested:
        yield Wait(who="run", why="is being stopped and lets the step under way end", since_s=since("stop"))
    elif situation.progress.state is RunState.STARTING and not situation.evaluating:
        missing = [role.value for role in needed_roles(limits) if not _is_here(situation.fleet, role)]
        if missing:
            why = f"waits for a {' and a '.join(missing)} (launch.ready_timeout_s is {limits.launch.ready_timeout_s:g})"
            yield Wait(who="run", why=why, since_s=since(("start", *missing)))
    if situation.evaluating:
        why = f"{situation.evaluating} (eval.timeout_s is {limits.eval.timeout_s:g})"
        yield Wait(who="evaluation", why=why, since_s=since(("evaluation", situation.evaluating)))


def _is_here(fleet: Fleet, role: Role) -> bool:
    return fleet.learner is not None if role is Role.LEARNER else bool(fleet.of(role))


def _services(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    for member in situation.fleet.members.values():
        if member.state is not State.READY:
            why = member.state.value + (f": {member.reason}" if member.reason else "")
            yield Wait(who=member.service_id, why=why, since_s=since((member.incarnation, member.state)))


def _learner(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    if situation.fleet.learner is None:
        limit = f"coordinator.no_service_timeout_s is {situation.config.coordinator.no_service_timeout_s:g}"
        yield Wait(who="learner", why=f"there is none ({limit})", since_s=since("no learner"))
    elif situation.assigned and situation.board.asked is None:
        step = min(situation.assigned)
        why = f"trains step {step} (learner.step_timeout_s is {situation.config.learner.step_timeout_s:g})"
        yield Wait(who="learner", why=why, since_s=since(("step", step, situation.fleet.learner.incarnation)))
    elif situation.board.asked is None:
        why = "asks for no batch: it saves a checkpoint, or it has only just come"
        yield Wait(who="learner", why=why, since_s=since(("idle", situation.fleet.learner.incarnation)))


def _batch(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    if situation.board.asked is None:
        return
    board, choice = situation.board, situation.board.choose()
    if not choice.ready:
        why = f"waits for {board.train_batch_size - len(choice.chosen)} of {board.train_batch_size} groups"
    elif choice.wait_for:
        names = ", ".join(group.group_id for group in choice.wait_for[:3])
        limit = f"coordinator.straggler_deadline_s is {situation.config.coordinator.straggler_deadline_s:g}"
        why = f"waits for {len(choice.wait_for)} groups that no later batch could train ({names}; {limit})"
    else:
        return
    yield Wait(who=f"batch {situation.board.asked}", why=why, since_s=since(("batch", situation.board.asked)))


def _groups(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    """Waits of live groups, a wait a state; the oldest group of each state counts."""
    oldest: dict[str, float] = {}
    count: Counter[str] = Counter()
    for group in situation.board.open.values():
        place = _place(group, situation.config)
        count[place] += 1
        oldest[place] = max(oldest.get(place, 0.0), since((group.group_id, group.attempt, place)))
    for place, since_s in oldest.items():
        yield Wait(who=f"{count[place]} group{'s' if count[place] > 1 else ''}", why=place, since_s=since_s)


def _place(group: Group, config: Config) -> str:
    limits = config.coordinator
    environment = group.prompt.environment
    if group.phase is Phase.PENDING and environment:
        return f"waiting for a place in environment {environment}, or for a rollout on which they may start"
    if group.phase is Phase.PENDING:
        return "waiting for a rollout on which they may start"
    if len(group.samples) < config.rollout.n:
        rollout = group.attempts[-1].rollout if group.attempts else "a rollout"
        if environment:
            return (
                f"played in environment {environment} by {rollout} (rollout.turn_timeout_s, {_generate_limit(config)})"
            )
        return f"generated by {rollout} ({_generate_limit(config)})"
    if not group.grader:
        return "waiting for a reward that has room"
    return f"graded by {group.grader} (coordinator.score_timeout_s is {limits.score_timeout_s:g})"


def _generate_limit(config: Config) -> str:
    return f"coordinator.generate_timeout_s is {config.coordinator.generate_timeout_s:g}"


def _admission(situation: Situation, since: SinceOf) -> Iterator[Wait]:
    closed = _why_closed(situation)
    if closed is not None:
        reason, why = closed
        yield Wait(who="admission", why=why, since_s=since(("admission", reason)))


def _why_closed(situation: Situation) -> tuple[str, str] | None:
    """A name and a sentence for closed admission; None while admission is open, or closed because enough groups are live."""
    board, settings = situation.board, situation.config.coordinator
    step = board.next_step + board.likely_rank(situation.admissions) // board.train_batch_size
    ready = [member.version.number for member in situation.fleet.of(Role.ROLLOUT) if member.version is not None]
    if situation.progress.stop_requested or step >= situation.config.run.total_steps:
        return None
    if situation.progress.admission != "open":
        return "asked", f"is {situation.progress.admission} by request; `sluice resume` opens it"
    if situation.failing:
        limit = f"coordinator.no_service_timeout_s is {settings.no_service_timeout_s:g}"
        return "failing", f"tries one group at a time, because groups fail in a row: {situation.failing:.300} ({limit})"
    for role in needed_roles(situation.config):
        if role.needs_no_weights and not situation.fleet.of(role):
            return role.value, f"is closed: no {role.value} is ready"
    if board.queued_bytes >= settings.queue_max_bytes:
        full = f"{board.queued_bytes / 1e9:.1f} of {settings.queue_max_bytes / 1e9:.1f} GB"
        return "queue", f"is closed: the queue is full ({full}, coordinator.queue_max_bytes) until a batch is assigned"
    if not board.has_room():
        return None
    if not ready:
        return "rollout", "is closed: no rollout is ready"
    if any(board.may_start(admission=situation.admissions, version=version) for version in ready):
        return None
    limit = f"coordinator.max_staleness is {settings.max_staleness}"
    return "age", f"is closed by age: a group from version {max(ready)} would be trained in step {step} ({limit})"
