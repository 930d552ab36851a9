"""The turns of one episode of a group that is to be trained: placement, repeated turns, and what a failure costs.

A turn goes on where the former one was sampled, while that rollout holds the same version, because it has the prefix in its
cache; else to the least loaded rollout. The admission gate counts the oldest version of the episode. The engine's place is
held during a turn only.

Waits: for a rollout that may start the group, unblocked by weight pushes, registrations and freed ranks; for the turn, at
most `generate_timeout_s`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from services.coordinator.episodes.group_account import Playing
from services.coordinator.episodes.policy import BeginAgain
from services.coordinator.episodes.wanted_episode import OpenedPrompt
from services.coordinator.state.group import GroupFailed, Phase, Sample
from services.coordinator.state.group_trace import attempt_of
from services.coordinator.state.member import Member, Role
from services.coordinator.state.placement import Tried, rollouts_for
from services.coordinator.state.ports import RolloutClient, Sampling, WrongAnswer
from services.coordinator.state.run_context import RunContext
from services.coordinator.state.seeds import seed_of
from sluice.errors import Expired, InvalidRequest, SluiceError
from sluice.policy_version import PolicyVersion

log = structlog.get_logger(__name__)


class _Interrupted(SluiceError):
    """The turn made room for newer weights (`weights.inflight: abort`): no try is used up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reports:
    """Who hears of what was sampled."""

    tokens: Callable[[int], None]
    began_again: Callable[[], None]


class GroupTurns:
    """Implements Policy for the episode `index` of a group."""

    def __init__(
        self, run: RunContext, *, rollouts: RolloutClient, reports: Reports, playing: Playing, index: int
    ) -> None:
        self._config, self._board, self._fleet, self._clock = run.config, run.board, run.fleet, run.clock
        self._rollouts, self._reports, self._playing, self._index = rollouts, reports, playing, index
        self._tracer = run.tracer
        self._group = playing.group
        self._tried, self._begun, self._again = Tried(), False, 0
        self._oldest: int | None = None
        self._cached_on: tuple[Member, PolicyVersion | None] | None = None

    def begin(self) -> None:
        """Policy.begin."""
        if self._begun:
            self._reports.began_again()
        self._begun, self._oldest, self._cached_on = True, None, None

    def opened(self, prompt: OpenedPrompt) -> None:
        """Policy.opened."""
        self._playing.take_prompt(prompt)

    def begun(self, prompt: OpenedPrompt) -> np.ndarray:
        """Policy.begun."""
        return self._playing.share_prompt(prompt).token_ids

    def lost(self, tokens: int) -> None:
        """Policy.lost."""
        self._group.lost_tokens += tokens
        self._playing.not_sampling(self._index)

    def failed(self, *, reason: str, fault: str) -> None:
        """Policy.failed."""
        if self._playing.tries[self._index] >= self._config.coordinator.max_attempts:
            raise GroupFailed(reason=reason, fault=fault)
        self._playing.end_try(self._index, fault=fault)
        self._playing.begin_try(self._index)
        self._playing.drop_too_old(self._board)
        self._again = 0

    async def turn(self, context: np.ndarray, *, turn: int, max_tokens: int) -> Sample:
        """Policy.turn."""
        while True:
            member = await self._place()
            taken = await self._traced(member, context, turn=turn, max_tokens=max_tokens)
            if isinstance(taken, Sample):
                self._have_sampled(member, taken)
                return taken
            if isinstance(taken, _Interrupted):
                self._again += 1
                continue
            log.warning("turn_failed", group_id=self._group.group_id, index=self._index, turn=turn, reason=str(taken))
            if isinstance(taken, InvalidRequest):
                self._tried.refused_by[member.service_id] = member
                if not self._another_may_serve():
                    raise GroupFailed(reason="refused", fault=str(taken))
                self._again += 1
                continue
            self._fleet.fail(member, str(taken), now_s=self._clock.now())
            self._tried.failed_on.add(member.service_id)
            self.failed(reason="generation", fault=str(taken))

    def _have_sampled(self, member: Member, sample: Sample) -> None:
        self._fleet.succeed(member)
        self._oldest = sample.oldest_version if self._oldest is None else min(self._oldest, sample.oldest_version)
        self._cached_on = (member, member.version)
        for refuser in self._tried.refused_by.values():
            reason = f"it refused a turn of {self._group.group_id}, which another rollout has sampled"
            self._fleet.fail(refuser, reason, now_s=self._clock.now())
        self._tried.refused_by.clear()

    async def _place(self) -> Member:
        """A place for one turn. Raises BeginAgain for an episode that has become too old, GroupFailed when all refuse."""
        admission = self._group.admission
        while True:
            if self._oldest is not None and not self._board.may_go_on(admission=admission, version=self._oldest):
                fault = f"the turns of version {self._oldest} could not be trained in time any more"
                raise BeginAgain(reason="too_old", fault=fault)
            begun = self._group.phase is Phase.IN_FLIGHT
            may = rollouts_for(self._fleet, self._board, admission=admission, tried=self._tried, begun=begun)
            member = self._with_prefix(may) or self._fleet.least_loaded(may, avoid=self._tried.failed_on)
            if member is not None:
                member.outstanding += 1
                return member
            if self._tried.refused_by and not self._another_may_serve():
                names = ", ".join(self._tried.refused_by)
                raise GroupFailed(reason="refused", fault=f"refused by {names}: there is no other")
            await self._board.changed.wait()

    def _with_prefix(self, may: list[Member]) -> Member | None:
        if self._cached_on is None:
            return None
        member, version = self._cached_on
        usable = member in may and member.version == version and member.service_id not in self._tried.failed_on
        return member if usable else None

    def _another_may_serve(self) -> bool:
        return self._fleet.another_may_serve(Role.ROLLOUT, refused_by=self._tried.refused_by)

    async def _traced(self, member: Member, context: np.ndarray, *, turn: int, max_tokens: int) -> Sample | SluiceError:
        """`_sample_on` as a span below the present try."""
        above = attempt_of(self._group.trace_id, self._playing.attempt_of(self._index))
        place = above and above.child()
        attributes = {"sluice.sample": self._index, "sluice.turn": turn, "sluice.rollout": member.service_id}
        with self._tracer.span("sluice.turn", place, parent=above, attributes=attributes) as noted:
            taken = await self._sample_on(member, context, turn=turn, max_tokens=max_tokens)
            if isinstance(taken, Sample):
                noted["gen_ai.usage.output_tokens"] = len(taken.token_ids)
            else:
                noted["error.type"] = type(taken).__name__
        return taken

    async def _sample_on(
        self, member: Member, context: np.ndarray, *, turn: int, max_tokens: int
    ) -> Sample | SluiceError:
        """One request on a place that is taken; gives the place back."""
        assert member.version is not None
        version, limit = member.version.number, self._config.coordinator.generate_timeout_s
        oldest = version if self._oldest is None else min(version, self._oldest)
        self._playing.sampling(self._index, rollout=member.service_id, version=version, oldest=oldest)
        taken: Sample | None = None
        try:
            async with asyncio.timeout(limit):
                async for taken in self._rollouts.generate(
                    member,
                    request_id=self._request_id(turn),
                    prompt=OpenedPrompt(of=self._group.prompt, token_ids=context, text=""),
                    seeds={self._index: self._seed(turn)},
                    sampling=Sampling(temperature=self._config.rollout.temperature, max_tokens=max_tokens),
                    timeout_s=limit,
                ):
                    self._received(len(taken.token_ids))
        except TimeoutError:
            return self._thrown(taken, Expired(f"{member.service_id} did not finish a turn in {limit:.0f} s"))
        except WrongAnswer as error:
            self._received(error.tokens)
            self._group.lost_tokens += error.tokens
            return self._thrown(taken, error)
        except SluiceError as error:
            self._fleet.lose_if_unreachable(member, error, now_s=self._clock.now())
            return self._thrown(taken, error)
        finally:
            self._fleet.give_back(member)
        if taken is None:
            return SluiceError(f"{member.service_id} ended a turn of {self._group.group_id} without a sample")
        if taken.finish_reason in ("stop", "length"):
            return taken
        if taken.finish_reason == "abort" and member.granted > version:
            return self._thrown(taken, _Interrupted(f"{member.service_id} aborted a turn for newer weights"))
        return self._thrown(taken, SluiceError(f"{member.service_id} ended a turn: {taken.finish_reason}"))

    def _received(self, tokens: int) -> None:
        self._playing.received(self._index, tokens=tokens)
        self._reports.tokens(tokens)

    def _thrown(self, taken: Sample | None, error: SluiceError) -> SluiceError:
        """The error, after the tokens of a turn that came and cannot be used are counted as lost."""
        self._group.lost_tokens += 0 if taken is None else len(taken.token_ids)
        return error

    def _request_id(self, turn: int) -> str:
        name = f"{self._group.group_id}.{self._index}.{self._playing.tries[self._index]}.{turn}"
        return name + (f".{self._again}" if self._again else "")

    def _seed(self, turn: int) -> int:
        group, number = self._group, self._playing.tries[self._index]
        return seed_of(self._config.run.seed, group.prompt.prompt_id, group.admission, number, self._index, turn)
