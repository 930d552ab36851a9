"""Accuracy on held-out prompts, all under one version: the rollout is pinned while it draws the samples.

Evaluation samples never enter queue or ledger. A sample that could not be graded is counted apart and is in no accuracy.
Waits: for a rollout on the newest version, then for the samples, together at most `eval.timeout_s`.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence

import blake3
import numpy as np
import structlog

from services.coordinator.groups.grading import Grading
from services.coordinator.state.evaluation_result import EvaluationResult, accuracies
from services.coordinator.state.fleet import Member, Role
from services.coordinator.state.group import PromptLike, Reward, Sample
from services.coordinator.state.ports import RolloutClient, Sampling
from services.coordinator.state.run_context import RunContext
from sluice.errors import Expired, InvalidRequest, NotReady, SluiceError, Unavailable, first_error
from sluice.policy_version import PolicyVersion

log = structlog.get_logger(__name__)


class Evaluator:
    """Runs one evaluation at a time."""

    def __init__(
        self, run: RunContext, *, rollouts: RolloutClient, grading: Grading, prompts: Sequence[PromptLike]
    ) -> None:
        """`prompts` are all held-out prompts; there may be none."""
        self._config, self._fleet, self._progress, self._clock = run.config, run.fleet, run.progress, run.clock
        self._rollouts, self._grading, self._prompts = rollouts, grading, prompts
        self._one_at_a_time = asyncio.Lock()
        self.under_way = ""
        """The present evaluation's activity, for people; empty without an evaluation."""

    @property
    def possible(self) -> bool:
        """Whether there are held-out prompts at all."""
        return bool(self._prompts)

    async def evaluate(self, *, prompts: int = 0, n: int = 0) -> EvaluationResult:
        """avg@n, pass@n and greedy accuracy of the newest version. Raises NotReady, Expired or the failure of a call."""
        if not self._prompts:
            raise NotReady("evaluation: data.val_files is empty", fix="name held-out prompts there")
        settings = self._config.eval
        chosen = self._prompts[: prompts or settings.prompts]
        async with self._one_at_a_time:
            started = self._clock.now()
            try:
                async with asyncio.timeout(settings.timeout_s):
                    failed: list[str] = []
                    while True:
                        try:
                            return await self._attempt(chosen, n or settings.n, started, avoid=failed)
                        except _RolloutFailed as failure:
                            self._blame(failure, failed)
            except TimeoutError:
                raise Expired(
                    f"evaluation: not done after eval.timeout_s = {settings.timeout_s:.0f} s (it waits for a rollout that "
                    "holds the newest version, then for its samples and a reward)"
                ) from None
            finally:
                self.under_way = ""

    async def _attempt(
        self, prompts: Sequence[PromptLike], n: int, started: float, *, avoid: Collection[str]
    ) -> EvaluationResult:
        """A whole evaluation on one rollout, because all samples need one version. Raises _RolloutFailed."""
        self.under_way = "waits for a rollout that holds the newest version"
        member = await self._pin(avoid)
        self.under_way = f"runs on {member.service_id}"
        try:
            # A task of its own: where a child fails, a TaskGroup of Python 3.11 leaves its task marked as cancelled, and
            # `eval.timeout_s` would cancel the run instead of ending the next attempt.
            return await asyncio.create_task(self._run(member, prompts, n, started))
        except BaseExceptionGroup as failures:
            error = first_error(failures)
            if isinstance(error, _RolloutFailed):
                error.member = member
            raise error from failures
        finally:
            member.weights.release()
            self._fleet.changed.notify()

    def _blame(self, failure: "_RolloutFailed", failed: list[str]) -> None:
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

    async def _run(self, member: Member, prompts: Sequence[PromptLike], n: int, started: float) -> EvaluationResult:
        version = member.version
        assert version is not None
        settings = self._config.eval
        room = asyncio.Semaphore(max(1, member.capacity // n))
        async with asyncio.TaskGroup() as tasks:
            sampled = [
                tasks.create_task(self._score(room, member, version, prompt, n, settings.temperature, f"{position}"))
                for position, prompt in enumerate(prompts)
            ]
            greedy = [
                tasks.create_task(self._score(room, member, version, prompt, 1, 0.0, f"{position}-greedy"))
                for position, prompt in enumerate(prompts)
                if settings.greedy
            ]
        accs, best = (np.array([_accs(task.result()[1]) for task in drawn]) for drawn in (sampled, greedy))
        if np.isnan(accs).all():
            raise SluiceError(f"evaluation: none of the {accs.size} samples could be graded: {_why_not(sampled)}")
        avg_at_n, pass_at_n = accuracies(accs)
        lengths = [len(sample.token_ids) for task in sampled for sample in task.result()[0]]
        return EvaluationResult(
            version=version,
            avg_at_n=avg_at_n,
            pass_at_n=pass_at_n,
            greedy=None if np.isnan(best).all() else accuracies(best)[0],
            n=n,
            prompts=len(prompts),
            mean_response_tokens=float(np.mean(lengths)),
            wall_s=self._clock.now() - started,
            ungraded=int(np.isnan(accs).sum() + np.isnan(best).sum()),
        )

    async def _score(
        self,
        room: asyncio.Semaphore,
        member: Member,
        version: PolicyVersion,
        prompt: PromptLike,
        n: int,
        temperature: float,
        name: str,
    ) -> tuple[list[Sample], list[Reward]]:
        limit = min(self._config.eval.timeout_s, self._config.coordinator.generate_timeout_s)
        request_id = f"eval-{version.lineage}{version.number}-{name}"
        async with room:
            try:
                samples: Mapping[int, Sample] = {
                    sample.index: sample
                    async for sample in self._rollouts.generate(
                        member,
                        request_id=request_id,
                        prompt=prompt,
                        seeds={index: _seed(prompt.prompt_id, index) for index in range(n)},
                        sampling=Sampling(temperature=temperature, max_tokens=self._config.data.max_response_length),
                        timeout_s=limit,
                        required_version=version,
                    )
                }
            except SluiceError as error:
                raise _RolloutFailed(error) from error
        ordered = [samples[index] for index in sorted(samples)]
        if len(ordered) != n:
            short = SluiceError(f"evaluation: {member.service_id} returned {len(ordered)} of {n} samples")
            raise _RolloutFailed(short)
        return ordered, await self._grade(request_id, prompt, ordered)

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


class _RolloutFailed(Exception):
    """The rollout of an evaluation failed, and not a reward."""

    def __init__(self, error: SluiceError) -> None:
        super().__init__(str(error))
        self.error = error
        self.member: Member | None = None


def _holds(member: Member, newest: PolicyVersion | None) -> bool:
    """Compares numbers, because a restored learner may still be behind the rollouts."""
    return newest is not None and member.version is not None and member.version.number >= newest.number


def _accs(rewards: Sequence[Reward]) -> list[float]:
    """Accuracies, NaN for a sample that could not be graded: which is neither right nor wrong."""
    return [reward.acc if reward.graded else float("nan") for reward in rewards]


def _why_not(tasks: "Sequence[asyncio.Task[tuple[list[Sample], list[Reward]]]]") -> str:
    """The status and the reason of the first sample that could not be graded."""
    reward = next(reward for task in tasks for reward in task.result()[1] if not reward.graded)
    return f"{reward.status} {reward.detail!r:.200}"


def _seed(prompt_id: str, index: int) -> int:
    """A seed that is the same in every evaluation, so that versions are compared with equal randomness."""
    return int.from_bytes(blake3.blake3(f"eval/{prompt_id}/{index}".encode()).digest(4), "little") >> 1
