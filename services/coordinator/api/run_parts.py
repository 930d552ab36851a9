"""All parts of one run's coordinator in one place, wired; what the servicer speaks to. Decides nothing itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.loggers.all_loggers import Loggers
from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.run.commits import Commits
from services.coordinator.run.evaluation import Evaluator
from services.coordinator.run.lifecycle import Lifecycle
from services.coordinator.run.stall import StallWatch
from services.coordinator.state.board import Board
from services.coordinator.state.events import Events
from services.coordinator.state.fleet import Fleet, Member, State
from services.coordinator.state.group import Phase
from services.coordinator.state.learner_history import Statement
from services.coordinator.state.progress import Progress, RunState
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import BatchFile, RunFiles
from services.coordinator.weights.push import WeightPush
from services.coordinator.wire.clients import Clients
from services.coordinator.wire.messages import ZstdGroups, group_to
from sluice.clock import Clock
from sluice.config.schema import Config
from sluice.errors import NotFound
from sluice.model_identity import ModelIdentity
from sluice.policy_version import PolicyVersion
from sluice.v1 import common_pb2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLine:
    """What ListGroups shows of a group."""

    group_id: str
    state: str
    admission: int
    prompt_id: str
    attempt: int
    oldest_version: int
    step: int


def line_of(row: Mapping[str, Any]) -> GroupLine:
    """What ListGroups shows of a ledger row."""
    return GroupLine(
        group_id=row["group_id"],
        state=row["term"],
        admission=row["admission"],
        prompt_id=row["prompt_id"],
        attempt=row["attempt"],
        oldest_version=row["oldest_version"],
        step=row["step"],
    )


@dataclass(kw_only=True, slots=True)
class Core:
    """The parts of one run."""

    run_id: str
    config: Config
    identity: ModelIdentity
    clock: Clock
    fleet: Fleet
    board: Board
    store: Store
    files: RunFiles
    events: Events
    clients: Clients
    codec: ZstdGroups
    prompts: PromptFeed
    conductor: Conductor
    assigner: Assigner
    push: WeightPush
    commits: Commits
    evaluator: Evaluator
    lifecycle: Lifecycle
    progress: Progress
    repair: Repair
    stall: StallWatch
    rollbacks: Rollbacks
    loggers: Loggers
    learner_fence: int = 0
    learner_incarnation: str = ""
    """The process that holds the fence."""
    learner_was_here: bool = False
    """Whether a learner has registered with this process. Before, its calls are not heard: Redis may have forgotten."""
    launchers: int = 0

    def ended(self, step: int) -> bool:
        """Whether the learner may leave: no batch will come, and nobody needs its weights any more.

        One that was restored behind the end of a finished run first makes the last version again: that is the model.
        """
        if self.progress.state is RunState.FINISHED:
            return step >= self.progress.trained_steps
        return self.progress.state.final or (self.progress.stop_requested and not self.assigner.assigned)

    async def learner_states(self, stated: Statement) -> None:
        """Books what Redis forgot of the steps behind a learner.

        Raises Fenced for one whose history was rolled back, NotReady for one that does not fit this run.
        """
        stated.refuse_given_up(self.rollbacks.history)
        await self.repair.learner_states(stated)

    async def learner_arrived(self, member: Member, version: PolicyVersion) -> int:
        """A learner registered; returns its fence. A new process gets a new one, which shuts out any other.

        It is no lower than the coordinator's: so it is above those that Redis may have forgotten, too.
        """
        if member.incarnation != self.learner_incarnation:
            self.learner_fence = max(self.learner_fence + 1, self.store.fence)
            self.learner_incarnation = member.incarnation
        fence = self.learner_fence
        await self.store.set_meta({"learner_fence": str(fence), "learner_incarnation": member.incarnation})
        self.learner_was_here = True
        member.version = version
        self.fleet.set_state(member, State.READY)
        if self.progress.version is None or version.number >= self.progress.version.number:
            self.progress.version = version
        behind = self.progress.trained_steps - version.number
        if behind > 0:
            self.events.emit("warning", f"the learner came back at version {version.number}; it replays {behind} steps")
        self.fleet.notify_all()
        return fence

    async def batch_for_learner(self, step: int, *, wait_s: float) -> BatchFile | str:
        """Batch `step`, or why there is none yet."""
        if self.ended(step):
            return f"the run has ended ({self.progress.state.value})"
        if step >= self.config.run.total_steps:
            await self.board.changed.wait(wait_s)
            return "all steps are trained; the last evaluation is under way"
        return await self.assigner.batch(step, wait_s=wait_s)

    async def roll_back(self) -> None:
        """Makes the rollback that was asked for, once nothing is booked any more. The process has to end afterwards."""
        self.learner_was_here = False
        await self.assigner.close()
        await self.commits.close()
        await self.repair.close()
        await self.rollbacks.make()

    def live_gauges(self) -> dict[str, float]:
        """Metrics that are read, not accumulated."""
        in_flight = self.board.count(Phase.IN_FLIGHT) + self.board.count(Phase.SCORED)
        return {
            "queue/groups": float(len(self.board.queued)),
            "queue/in_flight_groups": float(in_flight),
            "sampling/gen_batches": self.board.verdicts / self.board.gen_batch_size,
        }

    def group_lines(self) -> Iterator[GroupLine]:
        """Live groups and those that ended lately, newest first."""
        for group in reversed(list(self.board.open.values())):
            oldest = group.oldest_version
            yield GroupLine(
                group_id=group.group_id,
                state=group.phase.value,
                admission=group.admission,
                prompt_id=group.prompt.prompt_id,
                attempt=group.attempt,
                oldest_version=-1 if oldest is None else oldest,
                step=-1,
            )
        queued = [(group, "queued", -1) for group in self.board.queued.values()]
        assigned = [(group, "assigned", step) for step, groups in self.assigner.assigned.items() for group in groups]
        for group, state, step in reversed(assigned + queued):
            yield GroupLine(
                group_id=group.group_id,
                state=state,
                admission=group.admission,
                prompt_id=group.prompt_id,
                attempt=group.attempt,
                oldest_version=group.oldest_version,
                step=step,
            )
        for row in reversed(self.store.recent):
            yield line_of(row)

    async def find_payload(self, line: GroupLine) -> common_pb2.Group | None:
        """The group behind a line while it is kept: in memory, in the queue, or in its batch file."""
        if line.group_id in self.board.open:
            return group_to(self.board.open[line.group_id])
        if line.state == "queued":
            payload = await self.store.payload(line.group_id)
            return None if payload is None else self.codec.decode(payload)
        if line.step >= 0:
            try:
                batch = await self.files.read_batch(line.step)
            except NotFound:
                return None  # no longer kept: no checkpoint can ask for it
            groups = (self.codec.decode(payload) for payload in batch.payloads)
            return next((group for group in groups if group.group_id == line.group_id), None)
        return None

    async def sweep_forever(self) -> None:
        """Declares services lost that have gone silent; while this process itself did not run, nobody was heard."""
        settings, slept_s = self.config.coordinator, self.clock.now()
        while True:
            await self.clock.sleep(settings.heartbeat_interval_s)
            before_s, slept_s = slept_s, self.clock.now()
            if slept_s - before_s > settings.heartbeat_interval_s + settings.heartbeat_timeout_s / 2:
                self.fleet.excuse(now_s=slept_s)
            for member in self.fleet.sweep(now_s=self.clock.now(), timeout_s=settings.heartbeat_timeout_s):
                text = f"{member.service_id}: no heartbeat for {settings.heartbeat_timeout_s:.0f} s"
                self.events.emit("service_lost", text, labels={"service_id": member.service_id})

    async def close(self) -> None:
        """Ends channels and connections."""
        await self.loggers.close()
        await self.clients.close()
        await self.store.close()
