"""The one learner that may speak for a run: who holds the fence, what its holder is handed, when it may leave."""

from services.coordinator.groups.assignment import Assigner
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.state.fleet import Member, State
from services.coordinator.state.learner_history import Statement
from services.coordinator.state.progress import RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.run_files import BatchFile
from sluice.errors import Fenced, Unavailable
from sluice.policy_version import PolicyVersion


class LearnerSeat:
    """A new learner process gets a new fence, which shuts out any other."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        assigner: Assigner,
        repair: Repair,
        rollbacks: Rollbacks,
        own_fence: int,
        fence: int,
        incarnation: str,
    ) -> None:
        """`own_fence`: the coordinator's; `fence`, `incarnation`: of the process that held the seat last, as Redis has it."""
        self._config, self._progress = run.config, run.progress
        self._fleet, self._board, self._events = run.fleet, run.board, run.events
        self._store = records.store
        self._assigner, self._repair, self._rollbacks = assigner, repair, rollbacks
        self._own_fence, self._fence, self._incarnation = own_fence, fence, incarnation
        self._was_here = False
        """Whether a learner has registered with this process. Before, its calls are not heard: Redis may have forgotten."""

    async def hear(self, stated: Statement) -> None:
        """Books what Redis forgot of the steps behind a learner.

        Raises Fenced for one whose history was rolled back, NotReady for one that does not fit this run.
        """
        stated.refuse_given_up(self._rollbacks.history)
        await self._repair.learner_states(stated)

    async def take(self, member: Member, version: PolicyVersion) -> int:
        """A learner registered; returns its fence.

        The fence is no lower than the coordinator's, and so is above those that Redis may have forgotten, too.
        """
        if member.incarnation != self._incarnation:
            self._fence = max(self._fence + 1, self._own_fence)
            self._incarnation = member.incarnation
        fence = self._fence
        await self._store.set_meta({"learner_fence": str(fence), "learner_incarnation": member.incarnation})
        self._was_here = True
        member.version = version
        self._fleet.set_state(member, State.READY)
        if self._progress.version is None or version.number >= self._progress.version.number:
            self._progress.version = version
        behind = self._progress.trained_steps - version.number
        if behind > 0:
            text = f"the learner came back at version {version.number}; it replays {behind} steps"
            self._events.emit("warning", text)
        self._fleet.notify_all()
        return fence

    def vacate(self) -> None:
        """No learner is heard any more: the process is about to end."""
        self._was_here = False

    def check(self, fence: int) -> None:
        """Raises Unavailable before a learner has registered here, Fenced for any but the newest."""
        if not self._was_here:
            raise Unavailable("this coordinator has just started; the learner has to register first, then call again")
        if fence != self._fence:
            raise Fenced(
                f"this learner holds fence {fence}, a newer one holds {self._fence}: it was replaced and must end"
            )

    def has_ended(self, step: int) -> bool:
        """Whether the learner may leave: no batch will come, and nobody needs its weights any more.

        One that was restored behind the end of a finished run first makes the last version again: that is the model.
        """
        if self._progress.state is RunState.FINISHED:
            return step >= self._progress.trained_steps
        return self._progress.state.final or (self._progress.stop_requested and not self._assigner.assigned)

    async def batch(self, step: int, *, wait_s: float) -> BatchFile | str:
        """Batch `step`, or why there is none yet."""
        if self.has_ended(step):
            return f"the run has ended ({self._progress.state.value})"
        if step >= self._config.run.total_steps:
            await self._board.changed.wait(wait_s)
            return "all steps are trained; the last evaluation is under way"
        return await self._assigner.batch(step, wait_s=wait_s)
