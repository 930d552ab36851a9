"""Carries every group along its path: admission, generation, scoring, verdict, queue. The heart of the coordinator.

 who waits              for what                                    unblocked by
 admitter               room, a rollout that may start the group    verdicts, assignments, weight pushes, registrations
 a group's task         its rollout's samples, its rewards          the rollout or reward, their loss, the deadlines
Nothing waits for a group's task but the batch that would otherwise lose it (assignment.py).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import blake3
import numpy as np
import structlog

from services.coordinator.board import Board
from services.coordinator.fleet import Fleet, Member, Role
from services.coordinator.model import Group, Phase, QueuedGroup, Sample
from services.coordinator.ports import DurableState, GroupCodec, Prompts, RewardClient, RolloutClient, Sampling
from services.coordinator.rows import accepted_info, ledger_row
from services.coordinator.unbroken import unbroken
from services.coordinator.window import StepWindow
from sluice.clock import Clock
from sluice.config.schema import Config
from sluice.dapo.dynamic_sampling import Verdict, group_metric, judge
from sluice.errors import Expired, InvalidRequest, SluiceError

log = structlog.get_logger(__name__)


@dataclass(kw_only=True, slots=True)
class Failure(Exception):
    """This group cannot go on; `reason` is its ledger term after `failed:`."""

    reason: str


class Conductor:
    """Admits groups while `admitting` says so, and carries each one in a task of its own."""

    def __init__(
        self,
        *,
        config: Config,
        run_id: str,
        board: Board,
        fleet: Fleet,
        store: DurableState,
        prompts: Prompts,
        rollouts: RolloutClient,
        rewards: RewardClient,
        codec: GroupCodec,
        clock: Clock,
        admitting: Callable[[], bool],
        cursor: str,
        admissions: int,
    ) -> None:
        self._config, self._run_id, self._clock = config, run_id, clock
        self._board, self._fleet, self._store = board, fleet, store
        self._prompts, self._rollouts, self._rewards, self._codec = prompts, rollouts, rewards, codec
        self._admitting = admitting
        self._cursor, self._admissions = cursor, admissions
        self.window = StepWindow(started_s=clock.now())
        self.queued_bytes = 0
        self.failures_in_a_row = 0
        """Groups that failed since the last one that was scored."""
        self.last_progress_s = clock.now()
        """When a group last started or ended: what the stall watch looks at."""

    async def run(self) -> None:
        """Admits and carries until cancelled; cancelling abandons nothing durably (see `abandon_all`)."""
        async with asyncio.TaskGroup() as tasks:
            for group in list(self._board.open.values()):
                tasks.create_task(self._carry(group), name=group.group_id)
            while True:
                member = self._start_on(self._admissions) if self._may_admit() else None
                if member is None:
                    await self._board.changed.wait()
                    continue
                group = await self._admit()
                tasks.create_task(self._carry(group, member), name=group.group_id)

    def _may_admit(self) -> bool:
        return (
            self._admitting()
            and self._board.has_room()
            and self._is_needed()
            and self.queued_bytes < self._config.coordinator.queue_max_bytes
            and bool(self._fleet.of(Role.REWARD))
        )

    def _is_needed(self) -> bool:
        """Whether another group could still be trained before the last step ends."""
        batches_ahead = self._board.rank(self._admissions) // self._config.data.train_batch_size
        return self._board.next_step + batches_ahead < self._config.run.total_steps

    def _start_on(self, admission: int) -> Member | None:
        """The rollout on which a group of this admission may start now."""
        ready = [
            member
            for member in self._fleet.of(Role.ROLLOUT)
            if member.version is not None and self._board.may_start(admission=admission, version=member.version.number)
        ]
        member = self._fleet.least_loaded(ready)
        if member is not None:
            member.outstanding += self._config.rollout.n
        return member

    async def _admit(self) -> Group:
        prompt, after = self._prompts.next(self._cursor)
        group = Group(
            group_id=f"{self._run_id}-{self._admissions:07d}",
            admission=self._admissions,
            prompt=prompt,
            cursor=self._cursor,
        )
        info = {"admission": group.admission, "cursor": group.cursor, "prompt_id": prompt.prompt_id}
        self._cursor, self._admissions = after, self._admissions + 1
        self._board.add(group)
        await unbroken(self._store.admit(group.group_id, info=info, cursor=after, admissions=self._admissions))
        return group

    async def _carry(self, group: Group, member: Member | None = None) -> None:
        """One group, from admission to the queue or out."""
        try:
            await self._generate(group, member)
            await self._score(group)
        except Failure as failure:
            self.failures_in_a_row += 1
            await self.end(group, f"failed:{failure.reason}")
            return
        self.failures_in_a_row = 0
        group.phase = Phase.SCORED
        self.window.add_scored(group)
        verdict = self._judge(group)
        self.window.add_verdict(verdict)
        self._board.verdicts += 1
        if verdict is Verdict.KEPT and not self._too_late(group):
            await unbroken(self._accept(group))
        elif verdict is Verdict.KEPT:
            await self.end(group, "surplus" if self._board.max_staleness == 0 else "stale")
        else:
            await self.end(group, f"filtered_{verdict.value}")

    # --- generation ----------------------------------------------------------------------------------------------

    async def _generate(self, group: Group, member: Member | None) -> None:
        """Fills `group.samples`; samples that survive a failed attempt are kept while they can still be trained."""
        while len(group.samples) < self._config.rollout.n:
            if member is None:
                member = await self._place(group)
            failed = await self._generate_on(group, member)
            member = None
            if failed is None:
                continue
            log.warning("generation_failed", group_id=group.group_id, attempt=group.attempt, reason=str(failed))
            if isinstance(failed, InvalidRequest):
                raise Failure(reason="refused")
            if group.attempt >= self._config.coordinator.max_attempts:
                raise Failure(reason="generation")
            group.attempt += 1

    async def _place(self, group: Group) -> Member:
        """Waits until a rollout may start it."""
        group.phase, group.start_version = Phase.PENDING, None
        while True:
            oldest = group.oldest_version
            if oldest is not None and not self._board.may_start(admission=group.admission, version=oldest):
                group.lost_tokens += group.response_tokens
                group.samples.clear()
            member = self._start_on(group.admission)
            if member is not None:
                return member
            await self._board.changed.wait()

    async def _generate_on(self, group: Group, member: Member) -> SluiceError | None:
        """One attempt on one rollout, which already carries n outstanding samples for it; what went wrong, or None."""
        assert member.version is not None
        group.phase, group.start_version = Phase.IN_FLIGHT, member.version.number
        self.last_progress_s = self._clock.now()
        settings, limit = self._config.rollout, self._config.coordinator.generate_timeout_s
        missing = [index for index in range(settings.n) if index not in group.samples]
        received = 0
        try:
            async with asyncio.timeout(limit):
                async for sample in self._rollouts.generate(
                    member,
                    request_id=f"{group.group_id}.{group.attempt}",
                    prompt=group.prompt,
                    seeds={index: self._seed(group, index) for index in missing},
                    sampling=Sampling(
                        temperature=settings.temperature, max_tokens=self._config.data.max_response_length
                    ),
                    timeout_s=limit,
                ):
                    self._check(group, sample, granted=member.granted)
                    group.samples[sample.index] = sample
                    received += len(sample.token_ids)
        except TimeoutError:
            return Expired(f"{member.service_id} did not finish {group.group_id} in {limit:.0f} s")
        except SluiceError as error:
            self._fleet.lose_if_unreachable(member, error)
            return error
        finally:
            member.outstanding -= settings.n
            self._fleet.changed.notify()
            self.window.add_tokens(received)
        left = settings.n - len(group.samples)
        return SluiceError(f"{member.service_id} ended {group.group_id} {left} samples short") if left else None

    def _check(self, group: Group, sample: Sample, *, granted: int) -> None:
        """What a rollout returns is not trusted: wrong index, age or reason is a failed attempt."""
        if sample.index in group.samples or not 0 <= sample.index < self._config.rollout.n:
            raise SluiceError(f"{sample.rollout_id} returned sample {sample.index} of {group.group_id} unasked")
        if sample.finish_reason not in ("stop", "length"):
            raise SluiceError(f"{sample.rollout_id} ended a sample of {group.group_id}: {sample.finish_reason}")
        assert group.start_version is not None
        newest = max(span.version.number for span in sample.spans)
        if sample.oldest_version < group.start_version or newest > granted:
            raise SluiceError(
                f"{sample.rollout_id} stamped versions {sample.oldest_version} to {newest} on {group.group_id}; "
                f"it was granted {group.start_version} to {granted}"
            )

    def _seed(self, group: Group, index: int) -> int:
        """A seed of 31 bits from the run's seed, the group and its attempt: reproducible, never shared by two samples."""
        text = f"{self._config.run.seed}/{group.prompt.prompt_id}/{group.admission}/{group.attempt}/{index}"
        return int.from_bytes(blake3.blake3(text.encode()).digest(4), "little") >> 1

    # --- scoring, verdict, queue ---------------------------------------------------------------------------------

    async def _score(self, group: Group) -> None:
        """Fills `group.rewards`; a sample that could not be graded is an error, never a zero."""
        samples = [group.samples[index] for index in sorted(group.samples)]
        limit = self._config.coordinator.score_timeout_s
        reason = "reward_unavailable"
        for _ in range(self._config.coordinator.max_attempts):
            member = await self._reward()
            try:
                group.rewards = await self._rewards.score(
                    member, group_id=group.group_id, prompt=group.prompt, samples=samples, timeout_s=limit
                )
            except InvalidRequest as error:
                log.warning("scoring_refused", group_id=group.group_id, reason=str(error))
                raise Failure(reason="reward_refused") from error
            except SluiceError as error:
                log.warning("scoring_failed", group_id=group.group_id, reason=str(error))
                self._fleet.lose_if_unreachable(member, error)
                continue
            finally:
                member.outstanding -= 1
                self._fleet.changed.notify()
            ungraded = [reward for reward in group.rewards if not reward.graded]
            if not ungraded:
                return
            reason = f"reward_{ungraded[0].status}"
            log.warning("sample_not_graded", group_id=group.group_id, status=ungraded[0].status, why=ungraded[0].detail)
        if group.rewards:
            self.window.add_scored(group)
        raise Failure(reason=reason)

    async def _reward(self) -> Member:
        """Waits until a reward has room."""
        while True:
            free = [member for member in self._fleet.of(Role.REWARD) if member.outstanding < member.capacity]
            member = self._fleet.least_loaded(free)
            if member is not None:
                member.outstanding += 1
                return member
            await self._fleet.changed.wait()

    def _judge(self, group: Group) -> Verdict:
        """Dynamic sampling (eq. 11); with the filter off every group is kept."""
        filters = self._config.algorithm.filter_groups
        if not filters.enable:
            return Verdict.KEPT
        acc = np.array([reward.acc for reward in group.rewards])
        metric = group_metric(
            filters.metric,
            raw_scores=np.array([reward.raw_score for reward in group.rewards]),
            acc=acc,
            shaped_rewards=np.array([reward.shaped_reward for reward in group.rewards]),
        )
        return judge(metric=metric, acc=acc)

    def _too_late(self, group: Group) -> bool:
        oldest = group.oldest_version
        assert oldest is not None
        return self._board.next_step - oldest > self._board.max_staleness

    async def _accept(self, group: Group) -> None:
        payload = self._codec.encode(group)
        oldest = group.oldest_version
        assert oldest is not None
        accepted = QueuedGroup(
            group_id=group.group_id,
            admission=group.admission,
            oldest_version=oldest,
            tokens=group.response_tokens,
            payload_bytes=len(payload),
            prompt_id=group.prompt.prompt_id,
            attempt=group.attempt,
            shaped_mean=sum(reward.shaped_reward for reward in group.rewards) / len(group.rewards),
        )
        await self._store.accept(
            group.group_id,
            info=accepted_info(accepted),
            payload=payload,
            generated=group.response_tokens + group.lost_tokens,
            lost=group.lost_tokens,
        )
        self.queued_bytes += len(payload)
        self.last_progress_s = self._clock.now()
        self._board.accept(group, accepted)

    async def abandon_all(self) -> None:
        """Gives up every open group; call it when `run` has ended."""
        for group in list(self._board.open.values()):
            await self.end(group, "abandoned")

    async def end(self, group: Group, term: str) -> None:
        """An open group leaves: recorded first, then its rank is free."""
        await unbroken(self._end(group, term))

    async def _end(self, group: Group, term: str) -> None:
        await self._store.end(
            group.group_id,
            was="open",
            term=term,
            row=ledger_row(group, term=term),
            generated=group.response_tokens + group.lost_tokens,
            lost=group.lost_tokens,
        )
        self.last_progress_s = self._clock.now()
        self._board.remove(group)
