"""Fills a group with samples: places the group on a rollout that may start it, asks for missing samples, tries again.

Waits: for a rollout that the admission gate allows, unblocked by weight pushes, registrations and freed ranks; for the
samples, at most `generate_timeout_s`. Every sample of a rollout is checked before it counts.
"""

import asyncio
import time
from collections.abc import Callable

import blake3
import structlog

from services.coordinator.state.board import Board
from services.coordinator.state.fleet import Fleet, Member, Role
from services.coordinator.state.group import Attempt, Group, GroupFailed, Phase, Sample
from services.coordinator.state.ports import RolloutClient, Sampling
from sluice.config.schema import Config
from sluice.errors import Expired, InvalidRequest, SluiceError

log = structlog.get_logger(__name__)


class _Interrupted(SluiceError):
    """Samples made room for newer weights (`weights.inflight: abort`, or `finish` out of time): no attempt is used up."""


class Generation:
    """The first half of a group's path: samples."""

    def __init__(
        self,
        *,
        config: Config,
        board: Board,
        fleet: Fleet,
        rollouts: RolloutClient,
        report_tokens: Callable[[int], None],
    ) -> None:
        self._config, self._board, self._fleet, self._rollouts = config, board, fleet, rollouts
        self._report_tokens = report_tokens

    def start_on(self, admission: int) -> Member | None:
        """The rollout on which a group of this admission may start now."""
        held = [
            (member, member.version.number)
            for member in self._fleet.of(Role.ROLLOUT)
            if member.version is not None and not member.finishing
        ]
        versions = {number for _, number in held}  # few versions, however large the fleet
        allowed = {number for number in versions if self._board.may_start(admission=admission, version=number)}
        member = self._fleet.least_loaded([member for member, number in held if number in allowed])
        if member is not None:
            member.outstanding += self._config.rollout.n
        return member

    async def fill(self, group: Group, member: Member | None) -> None:
        """Fills `group.samples`, first on `member` if given; keeps samples of failed tries while they are young enough.

        Raises GroupFailed when the request is refused, or after `max_attempts`.
        """
        while len(group.samples) < self._config.rollout.n:
            if member is None:
                member = await self._place(group)
            failed = await self._generate_on(group, member)
            member = None
            if failed is None or isinstance(failed, _Interrupted):
                continue
            log.warning("generation_failed", group_id=group.group_id, attempt=group.attempt, reason=str(failed))
            if isinstance(failed, InvalidRequest):
                raise GroupFailed(reason="refused", fault=str(failed))
            if group.attempt >= self._config.coordinator.max_attempts:
                raise GroupFailed(reason="generation", fault=str(failed))
            group.attempt += 1

    async def _place(self, group: Group) -> Member:
        """Waits until a rollout may start the group."""
        group.phase, group.start_version = Phase.PENDING, None
        while True:
            oldest = group.oldest_version
            if oldest is not None and not self._board.may_start(admission=group.admission, version=oldest):
                group.lost_tokens += group.response_tokens
                group.samples.clear()
            member = self.start_on(group.admission)
            if member is not None:
                return member
            await self._board.changed.wait()

    async def _generate_on(self, group: Group, member: Member) -> SluiceError | None:
        """One attempt on a rollout whose count already has the group's n samples. Returns the error, or None."""
        assert member.version is not None
        missing = [index for index in range(self._config.rollout.n) if index not in group.samples]
        attempt = Attempt(
            number=group.attempt,
            rollout=member.service_id,
            version=member.version.number,
            asked=len(missing),
            started_s=time.time(),
        )
        group.phase, group.start_version = Phase.IN_FLIGHT, member.version.number
        group.attempts.append(attempt)
        failed = await self._receive(group, member, missing, attempt)
        attempt.ended_s, attempt.fault = time.time(), "" if failed is None else str(failed)
        return failed

    async def _receive(self, group: Group, member: Member, missing: list[int], attempt: Attempt) -> SluiceError | None:
        """Takes the samples in the order of arrival; returns the error or None."""
        settings, limit = self._config.rollout, self._config.coordinator.generate_timeout_s
        again = sum(former.number == group.attempt for former in group.attempts) - 1
        interrupted = 0
        try:
            async with asyncio.timeout(limit):
                async for sample in self._rollouts.generate(
                    member,
                    request_id=f"{group.group_id}.{group.attempt}" + (f".{again}" if again else ""),
                    prompt=group.prompt,
                    seeds={index: self._seed(group, index) for index in missing},
                    sampling=Sampling(
                        temperature=settings.temperature, max_tokens=self._config.data.max_response_length
                    ),
                    timeout_s=limit,
                ):
                    attempt.tokens += len(sample.token_ids)
                    if fault := self._fault(group, sample, granted=member.granted):
                        group.lost_tokens += len(sample.token_ids)
                        if sample.finish_reason == "abort" and _made_room(group, member):
                            interrupted += 1
                            continue
                        return SluiceError(fault)
                    group.samples[sample.index] = sample
                    attempt.samples += 1
        except TimeoutError:
            return Expired(f"{member.service_id} did not finish {group.group_id} in {limit:.0f} s")
        except SluiceError as error:
            self._fleet.lose_if_unreachable(member, error)
            return error
        finally:
            member.outstanding -= settings.n
            self._fleet.changed.notify()
            self._report_tokens(attempt.tokens)
        left = settings.n - len(group.samples)
        if left and left == interrupted:
            return _Interrupted(f"{member.service_id} aborted {left} samples for newer weights")
        return SluiceError(f"{member.service_id} ended {group.group_id} {left} samples short") if left else None

    def _fault(self, group: Group, sample: Sample, *, granted: int) -> str:
        """What is wrong with a rollout's sample (index, version, reason), which fails the attempt; empty for a good sample."""
        if sample.index in group.samples or not 0 <= sample.index < self._config.rollout.n:
            return f"{sample.rollout_id} returned sample {sample.index} of {group.group_id} unasked"
        if sample.finish_reason not in ("stop", "length"):
            return f"{sample.rollout_id} ended a sample of {group.group_id}: {sample.finish_reason}"
        assert group.start_version is not None
        newest = max(span.version.number for span in sample.spans)
        if sample.oldest_version < group.start_version or newest > granted:
            return (
                f"{sample.rollout_id} stamped versions {sample.oldest_version} to {newest} on {group.group_id}; "
                f"it was granted {group.start_version} to {granted}"
            )
        return ""

    def _seed(self, group: Group, index: int) -> int:
        """A seed of 31 bits from the run's seed, the group and the attempt: reproducible, different for every sample."""
        text = f"{self._config.run.seed}/{group.prompt.prompt_id}/{group.admission}/{group.attempt}/{index}"
        return int.from_bytes(blake3.blake3(text.encode()).digest(4), "little") >> 1


def _made_room(group: Group, member: Member) -> bool:
    """Whether a push under way explains an aborted sample. A push ends, so aborts of this kind end too."""
    assert group.start_version is not None
    return member.granted > group.start_version
