"""The one learner that may speak for a run: the holder of the fence, its batches, and when the learner may leave."""

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
    """The place of the one learner. A new learner process gets a new fence, which shuts out every other learner."""

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
        """`own_fence` is the coordinator's; `fence` and `incarnation` are Redis's record of the last learner process."""
        self._config, self._progress = run.config, run.progress
        self._fleet, self._board, self._events = run.fleet, run.board, run.events
        self._store = records.store
        self._assigner, self._repair, self._rollbacks = assigner, repair, rollbacks
        self._own_fence, self._fence, self._incarnation = own_fence, fence, incarnation
        self._was_here = False
        """Whether a learner has registered with this process. Earlier calls are refused, because Redis may have forgotten."""

    async def hear(self, stated: Statement) -> None:
        """Books the steps of a learner that Redis has forgotten.

        Raises Fenced for a learner whose history was rolled back, NotReady for a learner that does not fit this run.
        """
        stated.refuse_given_up(self._rollbacks.history)
        await self._repair.learner_states(stated)

    async def take(self, member: Member, version: PolicyVersion) -> int:
        """Takes in a learner that has registered; returns the learner's fence.

        The fence is at least the coordinator's fence, and so also above fences that Redis may have forgotten.
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
        """Refuses every learner from now on, because the process is about to end."""
        self._was_here = False

    def check(self, fence: int) -> None:
        """Raises Unavailable before a learner has registered here, Fenced for any fence but the newest."""
        if not self._was_here:
            raise Unavailable("this coordinator has just started; the learner has to register first, then call again")
        if fence != self._fence:
            raise Fenced(
                f"this learner holds fence {fence}, a newer one holds {self._fence}: it was replaced and must end"
            )

    def has_ended(self, step: int) -> bool:
        """Whether the learner may leave: no batch will come, and nobody needs the learner's weights any more.

        A learner that was restored to a version before the last one of a finished run first trains up to the last version,
        which is the model.
        """
        if self._progress.state is RunState.FINISHED:
            return step >= self._progress.trained_steps
        return self._progress.state.final or (self._progress.stop_requested and not self._assigner.assigned)

    async def batch(self, step: int, *, wait_s: float) -> BatchFile | str:
        """Batch `step`, or the reason why the batch is not ready."""
        if self.has_ended(step):
            return f"the run has ended ({self._progress.state.value})"
        if step >= self._config.run.total_steps:
            await self._board.changed.wait(wait_s)
            return "all steps are trained; the last evaluation is under way"
        return await self._assigner.batch(step, wait_s=wait_s)
