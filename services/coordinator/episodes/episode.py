"""One episode on one server: Open, then turns of policy and environment, until done or until a budget is used up.

Closing is the caller's (player.py). Waits: for turns (Policy.turn says who unblocks them); for the environment's answers, at
most `Limits.answer_s` each; while an environment pushes back, `Limits.push_back_s`. While a turn is sampled the last call is
repeated every third of the lease, so that the episode stays open.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from services.coordinator.episodes.chat_calls import ChatCalls
from services.coordinator.episodes.policy import Policy
from services.coordinator.episodes.token_stream import TokenStream
from services.coordinator.episodes.wanted_episode import Limits, OpenedPrompt, Wanted
from services.coordinator.state.back_pressure import Patience
from services.coordinator.state.group import GroupFailed, Sample
from services.coordinator.state.member import Member
from services.coordinator.state.ports import EnvironmentClient
from sluice.clock import Clock
from sluice.environments import Message, Opening, Reply, Score, Tool
from sluice.errors import DataError, Expired, InvalidRequest, Overloaded, SluiceError

T = TypeVar("T")


class EnvironmentFailed(Exception):
    """The server of the environment failed, or the episode is not open there any more."""

    def __init__(self, error: SluiceError) -> None:
        super().__init__(str(error))
        self.error = error


class Episode:
    """One episode under one id, played once."""

    def __init__(
        self,
        wanted: Wanted,
        policy: Policy,
        *,
        episode_id: str,
        member: Member,
        environments: EnvironmentClient,
        chat: ChatCalls,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._wanted, self._policy, self._limits, self._clock = wanted, policy, limits, clock
        self._member, self._environments, self._chat = member, environments, chat
        self.episode_id = episode_id
        self._stream: TokenStream | None = None
        self._again: Callable[[], Coroutine[Any, Any, object]] = self._call_open
        """The last call, which may be made again without effect."""

    async def open(self) -> Opening:
        """Opens the episode, once. Raises EnvironmentFailed."""
        return await self._asked(self._call_open)

    async def play(self, opening: Opening) -> Sample:
        """The opened episode as one sample. Raises EnvironmentFailed, BeginAgain, GroupFailed."""
        self._policy.begin()
        try:
            return await self._play(opening)
        except BaseException:  # also a cancellation: what was sampled is lost
            self._policy.lost(0 if self._stream is None else self._stream.sampled_tokens)
            raise

    async def _play(self, opening: Opening) -> Sample:
        history, tools, limits = await self._begin(opening), opening.tools, self._limits
        assert self._stream is not None
        stream, turn = self._stream, 0
        while True:
            context = stream.context
            most = limits.room(context=len(context), sampled=stream.sampled_tokens)
            started = time.monotonic()
            sample = await self._kept_open(self._policy.turn(context, turn=turn, max_tokens=most))
            said = await self._chat.read(sample.token_ids, context=context, tools=tools)
            names = [call.name for call in said.tool_calls]
            stream.add(sample, tools=names, seconds=time.monotonic() - started)
            left = limits.room(context=len(context) + len(sample.token_ids), sampled=stream.sampled_tokens)
            cut = sample.finish_reason == "length" or left <= 0
            last = cut or turn + 1 == limits.turns
            reply = await self._step(said, turn=turn, finish_reason=sample.finish_reason, last=last)
            if reply.done or last:
                is_cut = sample.finish_reason == "length" or (cut and not reply.done)
                return self._sample("length" if is_cut else "stop", reply.score)
            turn, history = turn + 1, [*history, said]
            if not await self._go_on(history, reply.messages, tools, context, sample):
                return self._sample("length", await self._without_room(turn))
            history += reply.messages

    def _sample(self, finish_reason: str, score: Score | None) -> Sample:
        assert self._stream is not None
        hosted = self._member.environments.get(self._wanted.prompt.environment)
        sample = self._stream.to_sample(self._wanted.index, finish_reason, score)
        return replace(sample, environment_version=hosted.version) if hosted else sample

    async def _begin(self, opening: Opening) -> list[Message]:
        """The chat with which the policy begins."""
        row = self._wanted.prompt
        messages = list(opening.messages) or [Message(role=one.role, content=one.content) for one in row.messages]
        try:
            ids, text = await self._chat.open(messages, opening.tools)
        except DataError as error:
            raise GroupFailed(reason="unrenderable", fault=f"environment {row.environment!r}: {error}") from error
        if len(ids) > self._limits.prompt_tokens:
            fault = f"the chat that {row.environment!r} opens has {len(ids)} tokens, data.max_prompt_length is"
            raise GroupFailed(reason="prompt_too_long", fault=f"{fault} {self._limits.prompt_tokens}")
        self._policy.opened(OpenedPrompt(of=row, token_ids=ids, text=text))
        self._stream = TokenStream(ids)
        return messages

    async def _step(self, said: Message, *, turn: int, finish_reason: str, last: bool) -> Reply:
        """The environment's answer to a turn, noted in the stream."""

        async def call() -> Reply:
            return await self._environments.step(
                self._member,
                episode_id=self.episode_id,
                environment=self._wanted.prompt.environment,
                turn=turn,
                message=said,
                finish_reason=finish_reason,
                last=last,
                timeout_s=self._limits.answer_s,
            )

        assert self._stream is not None
        started = time.monotonic()
        reply = await self._asked(call)
        self._again = call
        self._stream.answered(reply.messages, time.monotonic() - started)
        return reply

    async def _go_on(
        self,
        history: Sequence[Message],
        new: Sequence[Message],
        tools: Sequence[Tool],
        context: Any,
        sample: Sample,
    ) -> bool:
        """Takes the environment's answer into the stream; False where it leaves no room for a turn."""
        assert self._stream is not None
        try:
            follows = await self._chat.extend(
                context=context, sampled=sample.token_ids, history=history[:-1], new=new, tools=tools
            )
        except DataError as error:
            raise EnvironmentFailed(error) from error
        before = 0 if follows.rewritten else len(context) + len(sample.token_ids)
        tokens = before + len(follows.token_ids)
        if self._limits.room(context=tokens, sampled=self._stream.sampled_tokens) <= 0:
            return False
        self._stream.go_on(follows)
        return True

    async def _without_room(self, turn: int) -> Score | None:
        """The score of an episode whose next turn has no room: the environment hears that the policy wrote nothing."""
        hosted = self._member.environments.get(self._wanted.prompt.environment)
        if hosted is None or not hosted.scores:
            return None
        reply = await self._asked(
            lambda: self._environments.step(
                self._member,
                episode_id=self.episode_id,
                environment=self._wanted.prompt.environment,
                turn=turn,
                message=Message(role="assistant", content=""),
                finish_reason="length",
                last=True,
                timeout_s=self._limits.answer_s,
            )
        )
        return reply.score

    async def _call_open(self) -> Opening:
        return await self._environments.open(
            self._member,
            episode_id=self.episode_id,
            prompt=self._wanted.prompt,
            seed=self._wanted.seed,
            lease_s=self._limits.lease_s,
            max_turns=self._limits.turns,
            timeout_s=self._limits.answer_s,
        )

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        """The environment's answer; asks again where an open episode is pushed back. Raises EnvironmentFailed."""
        patience = Patience(self._clock, limit_s=self._limits.push_back_s, setting="coordinator.score_wait_s")
        while True:
            try:
                async with asyncio.timeout(self._limits.answer_s):
                    return await call()
            except TimeoutError:
                limit = f"{self._limits.answer_s:g} s (rollout.turn_timeout_s)"
                late = Expired(f"{self._member.service_id} did not answer {self.episode_id} in {limit}")
                raise EnvironmentFailed(late) from None
            except Overloaded as error:
                if self._stream is None:  # nothing is open, so its place is for others
                    raise EnvironmentFailed(error) from error
                try:
                    patience.refused(error)
                except Overloaded as over:
                    raise EnvironmentFailed(Expired(str(over))) from over
            except InvalidRequest as error:
                # Policies write anything: a refused turn, unlike a refused row, is a fault of the environment.
                raise EnvironmentFailed(error if self._stream is None else SluiceError(str(error))) from error
            except SluiceError as error:
                raise EnvironmentFailed(error) from error
            await patience.pause()

    async def _kept_open(self, work: Coroutine[Any, Any, Sample]) -> Sample:
        """A turn, during which the environment hears that the episode goes on. Raises EnvironmentFailed where it does not."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=self._limits.lease_s / 3))[0]:
                try:
                    async with asyncio.timeout(self._limits.answer_s):
                        await self._again()
                except (Overloaded, TimeoutError):
                    continue
                except SluiceError as error:
                    raise EnvironmentFailed(error) from error
            return task.result()
        finally:
            if task.done():
                _ = task.cancelled() or task.exception()  # read, also where a cancellation came at the same moment
            else:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
