"""The service's handle on one grader process (grader_process.py): give a job, read outcomes.

Every wait has a limit: START_LIMIT_S for the process to load a verifier, the caller's limit for one outcome. Every failure on
the pipe is a `WorkerDied`; afterwards the handle is only good for `kill`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from services.reward.ports import Completion, Grade, Job, Outcome
from services.reward.sandbox.guarded_process import START_LIMIT_S, GuardedProcess, Limits, WorkerDied
from sluice.clock import Clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """A job that a process has taken on."""

    version: str
    """The verifier's version."""
    whole: bool
    """Whether all completions are judged at once, so that all outcomes come at the end."""


class Refused(Exception):
    """The verifier cannot be loaded, so no sample of the job can be graded."""


class WorkerProcess(GuardedProcess):
    """One process, one job at a time. `start` makes a WorkerProcess."""

    MODULE = "services.reward.sandbox.grader_process"

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits, clock: Clock) -> None:
        super().__init__(process, limits, clock)
        self.graded = 0
        """Samples given to the process so far."""
        self._loaded: set[str] = set()
        """Verifiers that the process has imported."""

    async def begin(self, job: Job, completions: Sequence[Completion]) -> "Begun":
        """Hands over the completions; returns the verifier's version and way of judging.

        Raises:
            Refused: the verifier cannot be loaded, or not within START_LIMIT_S.
            WorkerDied: the process died, or has loaded the verifier already and does not take the job within a sample's limit.
        """
        loaded = job.verifier in self._loaded
        frame = {
            "verifier": job.verifier,
            "settings": dict(job.settings),
            "question": asdict(job.question),
            "completions": [asdict(completion) for completion in completions],
            "timeout_s": self._limits.timeout_s,
        }
        try:
            reply = await self._within(self._limits.timeout_s if loaded else START_LIMIT_S, self._exchange(frame))
        except TimeoutError:
            if loaded:
                raise WorkerDied(f"the grader process took no job for {self._limits.timeout_s:g} s") from None
            raise Refused(f"{job.verifier}: not loaded within {START_LIMIT_S:.0f} s") from None
        if "refused" in reply:
            raise Refused(f"{job.verifier}: {reply['refused']}")
        self._loaded.add(job.verifier)
        return Begun(version=reply["ready"], whole=reply["whole"])

    async def outcome(self, *, limit_s: float) -> Outcome:
        """The outcome of the next completion. Raises TimeoutError after `limit_s`, and WorkerDied."""
        self.graded += 1
        reply = await self._within(limit_s, self._receive())
        if "error" in reply:
            return Outcome(status="error", detail=reply["error"])
        if "busy" in reply:
            return Outcome(status="error", detail=reply["busy"], busy=True)
        if "timeout" in reply:
            return Outcome(status="timeout", detail=reply["timeout"])
        grade = Grade(**reply["grade"])
        return Outcome(status=grade.status, grade=grade)
