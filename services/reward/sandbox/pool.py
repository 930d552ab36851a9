"""A pool of worker processes that can be killed: grading that hangs, eats memory or dies costs one sample, no more.

    grade(job) -> bounded queue -> slot (one task, one process) -> grader_process.py
                                     |  a sample over its wall-clock limit: the process and its children are killed, `timeout`
                                     |  a process that died: the sample is tried once more, then `error`
                                     '- later samples of the group go to a fresh process

A verifier that judges a group at once has n times the limit for its n samples, which share one outcome when it fails.

 who waits              for what                    unblocked by
 the caller of `grade`  a free slot, then outcomes  a slot; the caller sets the deadline
 a slot                 its process's next outcome  the outcome, the limit of a sample
Wall-clock limits are enforced from outside alone: a library's own timeout does not fire inside C code, and `signal.alarm`
only on a main thread. The event loop never grades.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from services.reward.ports import Graded, Job, Outcome
from services.reward.sandbox.grader_handle import Limits, Refused, WorkerDied, WorkerProcess
from sluice.clock import Clock, SystemClock
from sluice.errors import Overloaded

log = structlog.get_logger(__name__)

MAX_WAITING_JOBS: Final = 256
"""Groups in the queue. Texts were cut to `reward.max_answer_chars` before, which bounds the queue's bytes."""

# A process that dies may have been killed by accident (by an out-of-memory killer, for instance), so the sample gets a
# second try; a sample that hangs does not.
_TRIES = 2

_UNREACHED = Outcome(status="timeout", detail="the call's deadline passed before its turn")


class GraderPool:
    """`Graders` over worker processes. `GraderPool.open` makes a pool."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._waiting: asyncio.Queue[tuple[Job, asyncio.Future[Graded]]] = asyncio.Queue(MAX_WAITING_JOBS)
        self._processes: list[WorkerProcess] = []
        self.running = 0
        """Groups that are being graded."""

    @classmethod
    @asynccontextmanager
    async def open(cls, *, workers: int, limits: Limits, clock: Clock | None = None) -> AsyncIterator["GraderPool"]:
        """A pool of started processes, which live as long as the context; `clock` is the machine's by default."""
        pool = cls(limits, clock or SystemClock())
        pool._processes = [await pool._start() for _ in range(workers)]
        async with asyncio.TaskGroup() as group:
            slots = [group.create_task(pool._slot(index), name=f"grader-{index}") for index in range(workers)]
            try:
                yield pool
            finally:
                for slot in slots:
                    slot.cancel()

    @property
    def capacity(self) -> int:
        """Groups that the pool grades at once."""
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        """Process ids of the guards, one a slot."""
        return [process.pid for process in self._processes]

    async def grade(self, job: Job) -> Graded:
        """Grades a group; waits for a slot without a limit of its own. Raises Overloaded when the queue is full."""
        answer: asyncio.Future[Graded] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((job, answer))
        except asyncio.QueueFull:
            raise Overloaded(
                f"reward: {MAX_WAITING_JOBS} groups are waiting for a grader; start more reward replicas"
            ) from None
        return await answer

    async def _slot(self, index: int) -> None:
        """Grades one job after the other until cancelled."""
        try:
            while True:
                job, answer = await self._waiting.get()
                if answer.done():  # the caller has given up
                    continue
                self.running += 1
                try:
                    graded = await self._grade(index, job)
                    if not answer.done():
                        answer.set_result(graded)
                finally:
                    self.running -= 1
                    answer.cancel()  # without effect on an answer that has its result
                if self._processes[index].graded >= self._limits.recycle_after:
                    await self._replace(index)
        finally:
            await self._processes[index].kill()

    async def _grade(self, index: int, job: Job) -> Graded:
        """Collects one outcome a completion, over as many processes as needed."""
        outcomes: list[Outcome] = []
        version, deaths, total = "", 0, len(job.completions)
        while len(outcomes) < total and self._limit_s(job) > 0:
            process, together, whole = self._processes[index], total, False
            try:
                begun = await process.begin(job, job.completions[len(outcomes) :])
                version, whole, together = begun.version, begun.whole, total if begun.whole else 1
                while len(outcomes) < total:
                    outcomes.append(await process.outcome(limit_s=self._limit_s(job, samples=together)))
                    deaths = 0
                break
            except TimeoutError:
                late = Outcome(status="timeout", detail=f"not graded within {together * self._limits.timeout_s:g} s")
                outcomes += [late] * min(together, total - len(outcomes))
                deaths = 0
            except WorkerDied as death:
                deaths += 1
                if whole:
                    outcomes.clear()  # the verifier is asked again about all completions
                if deaths == _TRIES:
                    dead = Outcome(status="error", detail=f"{death}, {_TRIES} times over")
                    outcomes += [dead] * min(together, total - len(outcomes))
                    deaths = 0
            except Refused as refusal:
                log.error("verifier_refused", verifier=job.verifier, reason=str(refusal))
                outcomes += [Outcome(status="error", detail=str(refusal))] * (len(job.completions) - len(outcomes))
            await self._replace(index)
        unreached = len(job.completions) - len(outcomes)
        return Graded(outcomes=[*outcomes, *[_UNREACHED] * unreached], version=version)

    def _limit_s(self, job: Job, *, samples: int = 1) -> float:
        """Wall clock for the next completion, or for `samples` at once, cut at the job's deadline."""
        limit_s = samples * self._limits.timeout_s
        if job.deadline_s is None:
            return limit_s
        return min(limit_s, job.deadline_s - self._clock.now())

    async def _start(self) -> WorkerProcess:
        return await WorkerProcess.start(self._limits, self._clock)

    async def _replace(self, index: int) -> None:
        old = self._processes[index]
        await old.kill()
        self._processes[index] = await self._start()
        log.info("grader_replaced", old_pid=old.pid, new_pid=self._processes[index].pid, graded=old.graded)
