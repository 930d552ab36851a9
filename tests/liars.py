"""Members that lie: fakes of rollouts and rewards that refuse, answer nonsense, come too late or come and go.

They keep every promise of registrations, weights and probes: otherwise they would never get work. `told` counts the lies.
"""

import asyncio
import itertools
import math
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sluice.errors import InvalidRequest, Overloaded
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.testing.fakes import FakeReward, FakeRollout, FakeService, version
from sluice.v1 import common_pb2 as common
from sluice.v1 import reward_pb2, rollout_pb2


def _version(span_version: common.PolicyVersion) -> list[common.VersionSpan]:
    return [common.VersionSpan(version=span_version, start_token=0, end_token=3)]


LIES_OF_A_ROLLOUT: list[dict[str, Any]] = [
    {"index": 77},
    {"index": -1},
    {"seed": -5},
    {"token_ids": pack_ids([5, 999_999, 2])},
    {"token_ids": pack_ids([5, -1, 2])},
    {"token_ids": b""},
    {"token_ids": b"abc"},
    {"logprobs": pack_floats([math.nan] * 3)},
    {"logprobs": pack_floats([-math.inf] * 3)},
    {"logprobs": pack_floats([2.0] * 3)},
    {"logprobs": pack_floats([-0.1])},
    {"spans": []},
    {"spans": _version(version(10_000))},
    {"spans": _version(version(-7))},
    {"spans": _version(version(0, "zz"))},
    {"spans": _version(version(0, "x" * 1_000_000))},
    {"finish_reason": common.FINISH_REASON_UNSPECIFIED},
    {"finish_reason": 99},
    {"finish_reason": common.FINISH_REASON_ABORT},
    {"finish_reason": common.FINISH_REASON_ERROR},
    {"text": "x" * 10_000_000},
    {"rollout_id": "x" * 1_000_000},
]
LIES_OF_A_REWARD: list[dict[str, Any]] = [
    {"status": 0},
    {"status": 99},
    {"raw_score": math.nan},
    {"raw_score": 1e300, "shaped_reward": 1e300},
    {"acc": math.inf},
    {"shaped_reward": -math.inf},
    {"shaped_reward": 123.0},
    {"overlong_penalty": math.nan},
    {"overlong_penalty": 5.0},
    {"extracted": "x" * 10_000_000},
    {"grader": "x" * 1_000_000},
    {"grader_version": "x" * 1_000_000},
    {"detail": "x" * 10_000_000},
    {"parts": {"style": math.nan}},
]


def lie(message: Any, fields: dict[str, Any]) -> None:
    """Sends the fields wrong."""
    for name in fields:
        message.ClearField(name)
    message.MergeFrom(type(message)(**fields))


class Liar(FakeService):
    """A member with a life: it joins, and joins anew under its name whenever it has died."""

    told = 0

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self._died = asyncio.Event()

    async def live(self, coordinator: str) -> None:
        """Until cancelled."""
        try:
            for life in itertools.count():
                self.incarnation = f"{self.service_id}-{os.getpid()}-{life}"
                self._died.clear()
                await self.join(coordinator)
                await self._died.wait()
                await self.stop()
        finally:
            await self.stop()

    async def die(self) -> None:
        """Never returns: the death of the server ends the call."""
        self._died.set()
        await never()


async def never() -> None:
    """Returns never: the caller's deadline, or the end of the server, ends the call."""
    await asyncio.Event().wait()


class LyingRollout(Liar, FakeRollout):
    """Lies in every sample."""

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self.lies: Iterator[dict[str, Any]] = itertools.cycle(LIES_OF_A_ROLLOUT)

    async def sample(self, request: rollout_pb2.GenerateRequest, *others: Any) -> common.Sample:
        sample = await super().sample(request, *others)
        if not _is_probe(request):
            self.told += 1
            lie(sample, next(self.lies))
        return sample


class _EvasiveRollout(Liar, FakeRollout):
    """Answers probes, and evades every other request in its own way."""

    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        honest = super().Generate(request, context)
        if not _is_probe(request):
            self.told += 1
        async for answer in honest if _is_probe(request) else self.evade(honest):
            yield answer

    def evade(self, honest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The answer, made of the honest one."""
        raise NotImplementedError


class RefusingRollout(_EvasiveRollout):
    """Refuses at once, in turn for good, for now and without a word."""

    async def evade(self, honest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        if self.told % 3:
            raise InvalidRequest("no") if self.told % 3 == 1 else Overloaded("full")
        return
        yield


class SlowRollout(_EvasiveRollout):
    """Begins no answer before the deadline."""

    async def evade(self, honest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        await never()
        yield


class TricklingRollout(_EvasiveRollout):
    """Sends one sample, and nothing more before the deadline."""

    async def evade(self, honest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        yield await anext(honest)
        await never()


class FlappingRollout(_EvasiveRollout):
    """Takes work and dies."""

    async def evade(self, honest: AsyncIterator[Any]) -> AsyncIterator[Any]:
        await self.die()
        yield


class LyingReward(Liar, FakeReward):
    """Lies in the first grade of every answer; every fourth answer has a grade too few."""

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self.lies: Iterator[dict[str, Any]] = itertools.cycle(LIES_OF_A_REWARD)

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        answer = await super().Score(request, context)
        self.told += 1
        if self.told % 4 == 0:
            del answer.results[0]
        else:
            lie(answer.results[0], next(self.lies))
        return answer


class RefusingReward(Liar, FakeReward):
    """Refuses at once, in turn for good and for now."""

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self.told += 1
        raise InvalidRequest("no") if self.told % 2 else Overloaded("full")


class SlowReward(Liar, FakeReward):
    """Does not answer before the deadline."""

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self.told += 1
        await never()
        return await super().Score(request, context)


class FlappingReward(Liar, FakeReward):
    """Takes work and dies."""

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self.told += 1
        await self.die()
        return await super().Score(request, context)


def _is_probe(request: rollout_pb2.GenerateRequest) -> bool:
    return request.request_id.startswith("probe")
