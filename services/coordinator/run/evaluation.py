"""Accuracy on held-out prompts, all under one version: the rollout is pinned while it draws the samples.

Evaluation samples never enter queue or ledger. A sample that could not be graded is counted apart and is in no accuracy.
Waits: for a rollout on the newest version, then for the samples, together at most `eval.timeout_s`.
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import structlog

from services.coordinator.episodes.player import Player
from services.coordinator.groups.grading import Grading
from services.coordinator.run.pinned_rollout import PinnedRollout, RolloutFailed
from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.evaluation_scores import PromptOutcome, accuracies, outcome
from services.coordinator.state.evaluation_trace import EvaluationTrace
from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import RolloutClient, Sampling
from services.coordinator.state.run_context import RunContext
from sluice.config.evaluation_sets import EvaluationSet
from sluice.errors import Expired, InvalidRequest, NotReady, SluiceError, Unavailable, first_error
from sluice.policy_version import PolicyVersion

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """One evaluation set, and its prompts."""

    settings: EvaluationSet
    prompts: Sequence[PromptLike]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """An evaluation's result, and what became of each prompt."""

    result: EvaluationResult
    outcomes: Sequence[PromptOutcome]


class Evaluator:
    """Runs one evaluation at a time."""

    def __init__(
        self,
        run: RunContext,
        *,
        rollouts: RolloutClient,
        grading: Grading,
        sets: Sequence[HeldOut],
        player: Player | None = None,
    ) -> None:
        """`sets` are all evaluation sets, the default set first; there may be none. `player` plays episodes."""
        self._player = player
        self._config, self._fleet, self._progress, self._clock = run.config, run.fleet, run.progress, run.clock
        self._rollouts, self._grading = rollouts, grading
        self._sets = {held_out.settings.name: held_out for held_out in sets}
        self._one_at_a_time = asyncio.Lock()
        self._trace = EvaluationTrace(run.tracer, run.steps)
        self.under_way = ""
        """The present evaluation's activity, for people; empty without an evaluation."""

    @property
    def sets(self) -> list[EvaluationSet]:
        """The sets that can be evaluated, the default set first; empty without held-out prompts."""
        return [held_out.settings for held_out in self._sets.values()]

    async def evaluate(self, name: str = "", *, prompts: int = 0, n: int = 0) -> Evaluated:
        """The accuracies of the newest version on a set; an empty name stands for the default set, or the first without one.

        Raises NotReady, InvalidRequest for an unknown name, Expired or the failure of a call.
        """
        held_out = self._set_of(name)
        settings = held_out.settings
        chosen, n = held_out.prompts[: prompts or settings.prompts], n or settings.n
        async with self._one_at_a_time:
            with self._trace.whole(settings, prompts=len(chosen), n=n):
                evaluated = await self._evaluated(settings, chosen, n)
                self._trace.found(evaluated.result)
        return evaluated

    async def _evaluated(self, settings: EvaluationSet, prompts: Sequence[PromptLike], n: int) -> Evaluated:
        """On one rollout after the other, until one is not lost meanwhile."""
        started, timeout_s, failed = self._clock.now(), self._config.eval.timeout_s, list[str]()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._attempt(settings, prompts, n, started, avoid=failed)
                    except RolloutFailed as failure:
                        self._blame(failure, failed)
        except TimeoutError:
            raise Expired(
                f"evaluation: not done after eval.timeout_s = {timeout_s:.0f} s (it waits for a rollout that "
                "holds the newest version, then for its samples and a reward)"
            ) from None
        finally:
            self.under_way = ""

    def _set_of(self, name: str) -> HeldOut:
        if not self._sets:
            raise NotReady("evaluation: data.val_files and eval.sets are empty", fix="name held-out prompts there")
        if name in self._sets:
            return self._sets[name]
        if name:
            known = ", ".join(settings.label for settings in self.sets)
            raise InvalidRequest(f"evaluation: {name!r:.60} is no evaluation set of this run; it has {known}")
        return next(iter(self._sets.values()))

    async def _attempt(
        self, settings: EvaluationSet, prompts: Sequence[PromptLike], n: int, started: float, *, avoid: Collection[str]
    ) -> Evaluated:
        """A whole evaluation on one rollout, because all samples need one version. Raises RolloutFailed."""
        self.under_way = "waits for a rollout that holds the newest version"
        member = await self._pin(avoid)
        self.under_way = f"runs on {member.service_id}" + (f", set {settings.name}" if settings.name else "")
        try:
            # A task of its own: where a child fails, a TaskGroup of Python 3.11 leaves its task marked as cancelled, and
            # `eval.timeout_s` would cancel the run instead of ending the next attempt.
            return await asyncio.create_task(self._run(member, settings, prompts, n, started))
        except BaseExceptionGroup as failures:
            error = first_error(failures)
            if isinstance(error, RolloutFailed):
                error.member = member
            raise error from failures
        finally:
            member.weights.release()
            self._fleet.changed.notify()

    def _blame(self, failure: RolloutFailed, failed: list[str]) -> None:
        """Notes a rollout that failed; the loss of a rollout is no try.

        Raises the rollout's error when all other rollouts failed too, and that `max_attempts` times unless it is a refusal.
        """
        member, error = failure.member, failure.error
        assert member is not None
        log.warning("evaluation_repeated", service_id=member.service_id, reason=str(error))
        now_s = self._clock.now()
        if self._fleet.lose_if_unreachable(member, error, now_s=now_s) or member.gone.is_set():
            return
        self._fleet.fail(member, str(error), now_s=now_s)
        failed.append(member.service_id)
        others = {other.service_id for other in self._fleet.of(Role.ROLLOUT)} - set(failed)
        if not others and (isinstance(error, InvalidRequest) or len(failed) >= self._config.coordinator.max_attempts):
            raise error

    async def _pin(self, avoid: Collection[str]) -> Member:
        """Takes the weights lock of a rollout that holds the newest version."""
        while True:
            newest = self._progress.version
            ready = [
                member
                for member in self._fleet.of(Role.ROLLOUT)
                if not member.weights.locked() and _holds(member, newest)
            ]
            member = self._fleet.least_loaded(ready, avoid=avoid)
            if member is not None:
                await member.weights.acquire()
                return member
            await self._fleet.changed.wait()

    async def _run(
        self, member: Member, settings: EvaluationSet, prompts: Sequence[PromptLike], n: int, started: float
    ) -> Evaluated:
        version = member.version
        assert version is not None
        self._trace.pinned(member.service_id, version)
        drawn = Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=self._config.data.max_response_length,
            evaluation=True,
        )
        best = replace(drawn, temperature=0.0, top_p=1.0)
        pinned = PinnedRollout(member, version, n=n, config=self._config, rollouts=self._rollouts, player=self._player)
        of = f"{settings.name}-" if settings.name else ""
        async with asyncio.TaskGroup() as tasks:
            sampled = [
                tasks.create_task(self._score(pinned, drawn, prompt, n, f"{of}{position}"))
                for position, prompt in enumerate(prompts)
            ]
            greedy = [
                tasks.create_task(self._score(pinned, best, prompt, 1, f"{of}{position}-greedy"))
                for position, prompt in enumerate(prompts)
                if settings.greedy
            ]
        of_best = [task.result()[1] for task in greedy] or [[] for _ in prompts]
        outcomes = [
            outcome(position, prompt, *task.result(), greedy=rewards)
            for position, (prompt, task, rewards) in enumerate(zip(prompts, sampled, of_best, strict=True))
        ]
        if not any(one.graded for one in outcomes):
            raise SluiceError(
                f"evaluation: none of the {len(prompts) * n} samples could be graded: {_why_not(sampled)}"
            )
        result = EvaluationResult(
            version=version,
            n=n,
            prompts=len(prompts),
            mean_response_tokens=sum(one.tokens for one in outcomes) / (len(prompts) * n),
            wall_s=self._clock.now() - started,
            set=settings.name,
            temperature=settings.temperature,
            top_p=settings.top_p,
            **await asyncio.to_thread(accuracies, outcomes),
        )
        return Evaluated(result=result, outcomes=outcomes)

    async def _score(
        self, pinned: PinnedRollout, sampling: Sampling, prompt: PromptLike, n: int, name: str
    ) -> tuple[list[Sample], list[Reward]]:
        request_id = f"eval-{pinned.version.lineage}{pinned.version.number}-{name}"
        with self._trace.prompt(request_id, prompt.prompt_id, n=n, sampling=sampling):
            return await self._drawn_and_graded(pinned, sampling, prompt, n, request_id)

    async def _drawn_and_graded(
        self, pinned: PinnedRollout, sampling: Sampling, prompt: PromptLike, n: int, request_id: str
    ) -> tuple[list[Sample], list[Reward]]:
        samples, prompt = await pinned.draw(sampling, prompt, n, request_id=request_id)
        return samples, await self._grade(request_id, prompt, samples)

    async def _grade(self, group_id: str, prompt: PromptLike, samples: Sequence[Sample]) -> list[Reward]:
        """Grades by any reward with room; by another reward when the first one dies or fails."""
        while True:
            try:
                return await self._grading.score(
                    group_id=group_id,
                    prompt=prompt,
                    samples=samples,
                    timeout_s=min(self._config.eval.timeout_s, self._config.coordinator.score_timeout_s),
                    tries=self._grading.tries(every=True),
                )
            except Unavailable as error:
                log.warning("evaluation_scoring_failed", group_id=group_id, reason=str(error))


def _holds(member: Member, newest: PolicyVersion | None) -> bool:
    """Compares numbers, because a restored learner may still be behind the rollouts."""
    return newest is not None and member.version is not None and member.version.number >= newest.number


def _why_not(tasks: "Sequence[asyncio.Task[tuple[list[Sample], list[Reward]]]]") -> str:
    """The status and the reason of the first sample that could not be graded."""
    reward = next(reward for task in tasks for reward in task.result()[1] if not reward.graded)
    return f"{reward.status} {reward.detail!r:.200}"
