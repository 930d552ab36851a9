"""The life of a run: services arrive, the reward is checked, the base is evaluated, steps are trained, the last version is
evaluated. And every reason for a run's end: finished, stopped, starved, failed.

 who waits   for what            unblocked by
 `run`       the services        registrations; after launch.ready_timeout_s without a role an error that names the role
 `run`       the last step       commits, `stop`, the watch that ends a run without services or with too many failures
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog

from services.coordinator.groups.assignment import Assigner
from services.coordinator.groups.conductor import Conductor
from services.coordinator.run.absences import Absences
from services.coordinator.run.evaluation import Evaluated, Evaluator
from services.coordinator.run.failing import FailureWatch
from services.coordinator.run.starvation import StarvationWatch
from services.coordinator.state.member import Role, State, needed_roles
from services.coordinator.state.ports import Forgot
from services.coordinator.state.progress import RunState
from services.coordinator.state.run_context import RunContext
from services.coordinator.storage.records import Records
from sluice.config.evaluation_sets import EvaluationSet
from sluice.errors import ConfigError, Expired, Fenced, LaunchError, SluiceError, first_error

log = structlog.get_logger(__name__)

T = TypeVar("T")

STOP_GRACE_S = 60.0
"""How long a stop waits for the step under way."""


class Lifecycle:
    """Drives one run through its states; the API shows the run's `progress`."""

    def __init__(
        self,
        run: RunContext,
        records: Records,
        *,
        conductor: Conductor,
        assigner: Assigner,
        evaluator: Evaluator,
        check_reward: Callable[[], Coroutine[Any, Any, None]],
        check_only: bool = False,
        evaluate_only: bool = False,
        warnings: Sequence[str] = (),
    ) -> None:
        """`warnings` are told once services are here, when somebody listens."""
        self._config, self._clock, self._fleet, self._board = run.config, run.clock, run.fleet, run.board
        self._progress, self._events, self._disk = run.progress, run.events, run.disk
        self._places = run.places
        self._store, self._files, self._ledger = records.store, records.files, records.ledger
        self._conductor, self._assigner, self._evaluator = conductor, assigner, evaluator
        self._check_reward, self._check_only, self._evaluate_only = check_reward, check_only, evaluate_only
        self._warnings = list(warnings)
        self._starvation = StarvationWatch(run, conductor=conductor)
        self._failures = FailureWatch(run, failures=conductor.admitter.failures)
        self._absences = Absences(run.clock)
        self._saving = asyncio.Lock()
        self._stopping = asyncio.Event()
        if run.progress.stop_requested:
            self._stopping.set()

    async def run(self) -> RunState:
        """Runs until the run has ended; returns the final state. `progress.reason` has the reason."""
        if self._progress.state.final:
            return self._progress.state  # the run had ended before this process started, which only answers callers
        try:
            await self._start()
            try:
                await self._train()
            except BaseExceptionGroup as group:
                raise first_error(group) from group
            state = await self._finish()
        except _Ended as ended:
            state = ended.state
            self._progress.reason = ended.reason
        except (Fenced, Forgot):
            raise  # the run goes on, in another process
        except SluiceError as error:
            log.error("run_failed", reason=str(error))
            self._progress.refused = isinstance(error, ConfigError) and self._progress.state is RunState.STARTING
            state, self._progress.reason = RunState.FAILED, str(error)
        await self._close_books(state)
        await self._enter(state)
        return state

    async def stop(self, reason: str) -> None:
        """Ends the run after the step under way; the stop outlasts a restart. Does nothing for a run that has ended."""
        if self._progress.state.final:
            return
        self._progress.stop_requested, self._progress.stop_reason = True, reason
        self._stopping.set()
        self._board.changed.notify()
        await self.save()

    async def save(self) -> None:
        """Writes the run's state to Redis."""
        async with self._saving:
            await self._store.set_meta(self._progress.to_meta())

    async def _start(self) -> None:
        starting = self._progress.state is RunState.STARTING
        if self._check_only or (starting and self._config.launch.check_reward):
            # Before a rollout has loaded a large model. Environments tell whether they score, and so what graders grade.
            needed = needed_roles(self._config, agents=False)
            await self._are_here(*(role for role in needed if role.needs_no_weights))
            self._warn()
            await self._unless_stopped(self._check_reward())
        if self._check_only:
            raise _Ended(RunState.FINISHED, "")
        await self._are_here(
            *(role for role in needed_roles(self._config) if role is not Role.LEARNER or not self._evaluate_only)
        )
        self._warn()
        if self._evaluate_only:
            await self._unless_stopped(self._evaluate(full=True, needed=True))
            raise _Ended(RunState.FINISHED, "")
        if self._progress.state is not RunState.STARTING:  # the run was running, by Redis or by the learner's statement
            self._progress.go_on(now_s=time.time())
            await self.save()
            return  # a restarted coordinator continues the run
        if self._evaluator.sets:
            await self._unless_stopped(self._evaluate(full=True, needed=True))
        self._progress.train_started_s = time.time()
        await self._enter(RunState.RUNNING)

    def _warn(self) -> None:
        for warning in self._warnings:
            self._events.emit("warning", warning)
        self._warnings.clear()

    async def _are_here(self, *roles: Role) -> None:
        """Returns when every role has a ready service. Raises LaunchError with the roles that were missing for too long."""
        launch = self._config.launch
        # The machines of a learner may need this long to meet; the learner, not this function, names a missing machine.
        limit = launch.ready_timeout_s * (2 if launch.learner_nnodes > 1 else 1)
        absences = Absences(self._clock)
        while missing := self._missing(*roles):
            self._raise_if_stopped()
            if late := absences.look(self._in_its_own_way(missing), limit_s=limit):
                raise LaunchError(f"no {' and no '.join(late)} became ready within {limit:.0f} s; see its log")
            await self._fleet.changed.wait(1.0)

    def _in_its_own_way(self, missing: list[str]) -> list[str]:
        """The missing roles that wait for nothing but themselves: neither for room on a full disk, as a service may have to
        that registers, nor for a place on the cluster, nor for the repair of a long run, nor, as a rollout, for the weights
        of a learner that has not come yet."""
        if self._disk.now() or self._progress.repairing:
            return []
        waits = self._fleet.learner is None and any(
            member.state in (State.REGISTERED, State.SYNCING) for member in self._fleet.of(Role.ROLLOUT, state=None)
        )
        return [role for role in self._placed(missing) if not (waits and role == Role.ROLLOUT.value)]

    def _placed(self, missing: list[str]) -> list[str]:
        """The missing roles without those that wait for a place on the cluster, which `launch.place_timeout_s` bounds."""
        awaited = self._places.awaited()
        return [role for role in missing if role not in awaited]

    def _missing(self, *roles: Role) -> list[str]:
        """Roles without a ready process; a registered learner counts as ready."""
        here = {Role.LEARNER: self._fleet.learner is not None}
        return [role.value for role in roles if not here.get(role, bool(self._fleet.of(role)))]

    async def _train(self) -> None:
        """Returns when the last step is committed; small evaluations run beside training."""
        evaluated = self._progress.trained_steps
        async with asyncio.TaskGroup() as tasks:
            conducting = tasks.create_task(self._conductor.run(), name="conductor")
            try:
                while self._progress.trained_steps < self._config.run.total_steps:
                    self._raise_if_stopped()
                    self._raise_if_stuck()
                    if due := self._due(evaluated):
                        tasks.create_task(self._evaluate(due, full=False, needed=False), name="evaluation")
                    evaluated = self._progress.trained_steps
                    if self._ledger.is_due:
                        tasks.create_task(self._ledger.flush(), name="ledger")
                    await self._board.changed.until(partial(self._is_due, evaluated), 1.0)
            finally:
                conducting.cancel()

    def _is_due(self, evaluated: int) -> bool:
        """Whether `_train` has to look before its second is over: nearly every change is a group's, and means nothing to it."""
        progress = self._progress
        return (
            progress.stop_requested
            or progress.trained_steps != evaluated
            or self._starvation.is_due
            or self._conductor.admitter.failures.have_a_cause
        )

    def _due(self, before: int) -> list[EvaluationSet]:
        """The sets to evaluate since so many steps were trained."""
        done = self._progress.trained_steps
        if done >= self._config.run.total_steps:
            return []
        return [
            one
            for one in self._evaluator.sets
            if one.every_steps and done // one.every_steps > before // one.every_steps
        ]

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which a stop of the run breaks off."""
        task, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._raise_if_stopped()
            return task.result()
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)

    def _raise_if_stopped(self) -> None:
        if self._progress.stop_requested:
            raise _Ended(RunState.STOPPED, self._progress.stop_reason)

    def _raise_if_stuck(self) -> None:
        if reason := self._starvation.look():
            raise _Ended(RunState.STARVED, reason)
        if reason := self._failures.look():
            raise SluiceError(reason)
        limit = self._config.coordinator.no_service_timeout_s
        missing = [] if self._disk.now() else self._placed(self._missing(*needed_roles(self._config)))
        if gone := self._absences.look(missing, limit_s=limit):
            raise Expired(
                f"no {' and no '.join(gone)} for {limit:.0f} s (coordinator.no_service_timeout_s){self._why()}"
            )

    def _why(self) -> str:
        """The members that are there and get no work, with the reasons."""
        idle = [member for member in self._fleet.members.values() if member.state is State.QUARANTINED]
        return "".join(f"; {member.service_id} is quarantined: {member.reason}" for member in idle)

    async def _finish(self) -> RunState:
        await self._enter(RunState.FINISHING)
        if self._evaluator.sets:
            await self._unless_stopped(self._evaluate(full=True, needed=False))
        return RunState.FINISHED

    async def _evaluate(self, sets: Sequence[EvaluationSet] = (), *, full: bool, needed: bool) -> None:
        """Evaluates the sets, or all of them. Where the evaluation is `needed`, a failed one fails the run: before the first
        step, when a fault of the recipe costs nothing yet. Later it is a warning, and the reason that a trained run shows after
        a failed last one."""
        for one in sets or self._evaluator.sets:
            size = {} if full else {"prompts": one.small_prompts, "n": one.small_n}
            try:
                evaluated = await self._evaluator.evaluate(one.name, **size)
            except SluiceError as error:
                if needed:
                    raise
                of = f" of {one.name}" if one.name else ""
                self._events.emit("warning", f"evaluation{of} skipped: {error}")
                if full:
                    self._progress.reason = f"every step is trained; the last evaluation{of} failed: {error}"
                continue
            await self.record_evaluation(evaluated, full=full)

    async def record_evaluation(self, evaluated: Evaluated, *, full: bool) -> None:
        """Records an evaluation in RUN/evaluations, metrics.jsonl, progress, Redis and the event stream.

        After a kill in between, the repeated evaluation's file and line take the places of the first.
        """
        result = evaluated.result
        await self._files.keep_evaluation(result, [one.to_row() for one in evaluated.outcomes])
        await self._files.append_metrics({"kind": "eval", "time_s": time.time(), "full": full} | result.to_line())
        self._progress.evaluated(result)
        await self.save()
        values = result.metrics()
        self._progress.metrics.update(values)
        self._events.emit(
            "evaluated",
            str(result),
            values=values | {"version": float(result.version.number), "n": float(result.n)},
            labels={"set": result.set} if result.set else {},
        )

    async def _close_books(self, state: RunState) -> None:
        """Waits for the step under way, then ends groups in flight as abandoned. Accepted and assigned groups wait for the
        run to be started again; a finished run abandons accepted groups too."""
        await self._assigner.close()
        if state is RunState.STOPPED:
            await self._step_under_way()
        await self._conductor.abandon_all()
        if state is RunState.FINISHED:
            await self._assigner.abandon_queued()
        await self._ledger.flush()

    async def _step_under_way(self) -> None:
        give_up = self._clock.now() + STOP_GRACE_S
        while self._assigner.assigned and self._fleet.learner and self._clock.now() < give_up:
            await self._board.changed.wait(1.0)

    async def _enter(self, state: RunState) -> None:
        """Shows a state when Redis has it: who sees that the run has finished may end this process at once."""
        async with self._saving:
            await self._store.set_meta(self._progress.to_meta() | {"state": state.value})
            self._progress.state = state
        # At once, so that whoever has seen the state hears no news of it any more.
        self._events.emit("run_state", self._progress.reason or state.value, labels={"state": state.value})
        self._board.changed.notify()


class _Ended(Exception):
    """Ends the run, as planned or as asked."""

    def __init__(self, state: RunState, reason: str) -> None:
        super().__init__(reason)
        self.state, self.reason = state, reason
