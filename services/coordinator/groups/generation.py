"""Fills a group with samples: places the group on a rollout that may start it, asks for missing samples, tries again.

A failed attempt counts against the rollout (state/health.py), and the next attempt goes to another rollout where one may
start the group. A refused request goes to every other rollout; when one of them serves the request, the refusals were
failures.

Waits: for a rollout that the admission gate allows, unblocked by weight pushes, registrations and freed ranks; for the
samples, at most `generate_timeout_s`.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from services.coordinator.state.group import Attempt, Group, GroupFailed, Phase
from services.coordinator.state.group_trace import attempt_of
from services.coordinator.state.member import Member, Role
from services.coordinator.state.placement import Tried, rollouts_for
from services.coordinator.state.ports import RolloutClient, Sampling, WrongAnswer
from services.coordinator.state.run_context import RunContext
from services.coordinator.state.seeds import seeds_of
from sluice.errors import Expired, InvalidRequest, SluiceError
from sluice.telemetry.traces.context import within

log = structlog.get_logger(__name__)


class _Interrupted(SluiceError):
    """Samples made room for newer weights (`weights.inflight: abort`, or `finish` out of time): no attempt is used up."""


class Generation:
    """The first half of a group's path: samples."""

    def __init__(self, run: RunContext, *, rollouts: RolloutClient, report_tokens: Callable[[int], None]) -> None:
        self._config, self._board, self._fleet, self._clock = run.config, run.board, run.fleet, run.clock
        self._rollouts, self._report_tokens = rollouts, report_tokens

    def start_on(self, admission: int, tried: Tried | None = None, *, begun: bool = False) -> Member | None:
        """The rollout on which a group of this admission may start (or go on) now, after what was tried."""
        tried = tried or Tried()
        may = rollouts_for(self._fleet, self._board, admission=admission, tried=tried, begun=begun)
        member = self._fleet.least_loaded(may, avoid=tried.failed_on)
        if member is not None:
            member.outstanding += self._config.rollout.n
        return member

    def give_back(self, member: Member) -> None:
        """Gives back the places that `start_on` took."""
        self._fleet.give_back(member, self._config.rollout.n)

    async def fill(self, group: Group, member: Member | None) -> None:
        """Fills `group.samples`, first on `member` if given; keeps samples of failed tries while they are young enough.

        Raises GroupFailed when every rollout refuses the request, or after `max_attempts`.
        """
        tried = Tried()
        while len(group.samples) < self._config.rollout.n:
            if member is None:
                member = await self._place(group, tried)
            asked, member = member, None
            failed = await self._generate_on(group, asked)
            if failed is None:
                self._fleet.succeed(asked)
                continue
            if isinstance(failed, _Interrupted):
                continue
            log.warning("generation_failed", group_id=group.group_id, attempt=group.attempt, reason=str(failed))
            if isinstance(failed, InvalidRequest):
                tried.refused_by[asked.service_id] = asked
                if not self._another_may_serve(tried):
                    raise GroupFailed(reason="refused", fault=str(failed))
                continue
            self._fleet.fail(asked, str(failed), now_s=self._clock.now())
            tried.failed_on.add(asked.service_id)
            if group.attempt >= self._config.coordinator.max_attempts:
                raise GroupFailed(reason="generation", fault=str(failed))
            group.attempt += 1
        for refuser in tried.refused_by.values():
            reason = f"it refused {group.group_id}, which another rollout has generated"
            self._fleet.fail(refuser, reason, now_s=self._clock.now())

    async def _place(self, group: Group, tried: Tried) -> Member:
        """Waits until a rollout may start the group. Raises GroupFailed when every rollout has refused the group."""
        group.phase, group.start_version = Phase.PENDING, None
        while True:
            oldest = group.oldest_version
            if oldest is not None and not self._board.may_go_on(admission=group.admission, version=oldest):
                group.lost_tokens += group.response_tokens
                group.samples.clear()
            member = self.start_on(group.admission, tried, begun=bool(group.samples))
            if member is not None:
                return member
            if tried.refused_by and not self._another_may_serve(tried):
                raise GroupFailed(
                    reason="refused", fault=f"refused by {', '.join(tried.refused_by)}: there is no other"
                )
            await self._board.changed.wait()

    def _another_may_serve(self, tried: Tried) -> bool:
        return self._fleet.another_may_serve(Role.ROLLOUT, refused_by=tried.refused_by)

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
        with within(attempt_of(group.trace_id, attempt)):
            failed = await self._receive(group, member, missing, attempt)
        attempt.ended_s, attempt.fault = time.time(), "" if failed is None else str(failed)
        return failed

    async def _receive(self, group: Group, member: Member, missing: list[int], attempt: Attempt) -> SluiceError | None:
        """Takes the samples in the order of arrival; returns the error or None."""
        settings, limit = self._config.rollout, self._config.coordinator.generate_timeout_s
        places = settings.n
        again = sum(former.number == group.attempt for former in group.attempts) - 1
        interrupted = 0
        try:
            async with asyncio.timeout(limit):
                async for sample in self._rollouts.generate(
                    member,
                    request_id=f"{group.group_id}.{group.attempt}" + (f".{again}" if again else ""),
                    prompt=group.prompt,
                    seeds=self._seeds(group, missing),
                    sampling=Sampling(
                        temperature=settings.temperature, max_tokens=self._config.data.max_response_length
                    ),
                    timeout_s=limit,
                ):
                    attempt.tokens += len(sample.token_ids)
                    if member.target is not None and places > 1:  # whose next sample may start
                        places -= 1
                        self._fleet.give_back(member)
                    if sample.finish_reason not in ("stop", "length"):
                        group.lost_tokens += len(sample.token_ids)
                        if sample.finish_reason == "abort" and _made_room(group, member):
                            interrupted += 1
                            continue
                        return SluiceError(f"{member.service_id} ended a sample: {sample.finish_reason}")
                    group.samples[sample.index] = sample
                    attempt.samples += 1
        except TimeoutError:
            return Expired(f"{member.service_id} did not finish {group.group_id} in {limit:.0f} s")
        except WrongAnswer as error:
            attempt.tokens += error.tokens
            group.lost_tokens += error.tokens
            return error
        except SluiceError as error:
            self._fleet.lose_if_unreachable(member, error, now_s=self._clock.now())
            return error
        finally:
            self._fleet.give_back(member, places)
            self._report_tokens(attempt.tokens)
        left = settings.n - len(group.samples)
        if left and left == interrupted:
            return _Interrupted(f"{member.service_id} aborted {left} samples for newer weights")
        return SluiceError(f"{member.service_id} ended {group.group_id} {left} samples short") if left else None

    def _seeds(self, group: Group, indexes: Iterable[int]) -> dict[int, int]:
        """Seeds of 31 bits from the run's seed, the group and the attempt: reproducible, different for every sample."""
        named = (self._config.run.seed, group.prompt.prompt_id, group.admission, group.attempt)
        return seeds_of(*named, last=indexes)


def _made_room(group: Group, member: Member) -> bool:
    """Whether a push under way explains an aborted sample. A push ends, so aborts of this kind end too."""
    assert group.start_version is not None
    return member.granted > group.start_version
