"""The one learner that may speak for a run: the holder of the fence, its batches, and when the learner may leave."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from services.coordinator.groups.assignment import Assigner
from services.coordinator.recovery.repair import Repair
from services.coordinator.recovery.rollback import Rollbacks
from services.coordinator.state.learner_history import Statement
from services.coordinator.state.member import Member, State
from services.coordinator.state.progress import RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from services.coordinator.storage.run_files import BatchFile
from sluice.errors import Busy, Fenced, Unavailable
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
        meta: Mapping[str, str],
    ) -> None:
        """`own_fence` is the coordinator's; `meta` has Redis's record of the last learner process and of its deaths."""
        self._config, self._progress = run.config, run.progress
        self._fleet, self._board, self._events = run.fleet, run.board, run.events
        self._store = records.store
        self._assigner, self._repair, self._rollbacks = assigner, repair, rollbacks
        self._own_fence, self._fence = own_fence, int(meta.get("learner_fence", 0))
        self._incarnation = meta.get("learner_incarnation", "")
        self._deaths = Deaths.from_meta(meta.get("deaths", ""))
        self._holds: tuple[int, str] | None = None
        """Step and digest of the batch that the present learner process was handed last."""
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
            await self._count_death()
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

    async def _count_death(self) -> None:
        """Counts the end of a learner process that held a batch, did not commit it and did not say that it leaves.

        A batch on which learners die again and again is set aside, because no restart would ever get past it.
        """
        held, self._holds = self._holds, None
        most = self._config.coordinator.max_batch_deaths
        if held is None or most == 0 or held[0] < self._progress.trained_steps:
            return
        step, digest = held
        self._deaths = self._deaths.after_another(step, digest)
        await self._store.set_meta({"deaths": self._deaths.to_meta()})
        self._events.emit("warning", f"the learner died on batch {step} ({self._deaths.count} of {most} times)")
        if self._deaths.count >= most:
            why = f"the learner died {self._deaths.count} times on batch {step}"
            await self._assigner.set_aside(step, digest=digest, why=why)

    async def cannot_train(self, step: int, *, digest: str, why: str) -> None:
        """Sets aside a batch that the learner has refused, unless its step was committed, because no learner could
        train the batch.
        """
        self._holds = None
        await self._assigner.set_aside(step, digest=digest, why=f"the learner cannot train batch {step}: {why}")

    def leaves(self, incarnation: str) -> None:
        """The learner process ends as it should, so that its end is no death."""
        if incarnation == self._incarnation:
            self._holds = None

    def vacate(self) -> None:
        """Refuses every learner from now on, because the process is about to end."""
        self._was_here = False

    def check(self, fence: int) -> None:
        """Raises Unavailable before a learner has registered here, Busy while Redis is repaired first, Fenced for any fence but
        the newest."""
        if self._progress.repairing:
            raise Busy("the coordinator repairs this run's Redis, which had forgotten writes; the repair goes on")
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
        found = await self._assigner.batch(step, wait_s=wait_s)
        if isinstance(found, BatchFile):
            self._holds = (found.step, found.digest)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Deaths:
    """How many learner processes died on one batch."""

    step: int = -1
    digest: str = ""
    count: int = 0

    @classmethod
    def from_meta(cls, text: str) -> "Deaths":
        """From Redis's record; "" stands for none."""
        return cls(**json.loads(text)) if text else cls()

    def to_meta(self) -> str:
        """The record for Redis."""
        return json.dumps({"step": self.step, "digest": self.digest, "count": self.count})

    def after_another(self, step: int, digest: str) -> "Deaths":
        """With one more death, on this batch: another batch starts from 1."""
        same = (self.step, self.digest) == (step, digest)
        return Deaths(step=step, digest=digest, count=self.count + 1 if same else 1)
