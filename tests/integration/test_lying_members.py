"""Rollouts and rewards that answer nonsense, two at a time: the run ends trained, its ledger closed, the liars quarantined.

A liar sends the fields of its answers wrong in turn, as often as it gets work: some ten to twenty lies a run. That every
single lie is refused, and for what, is in tests/unit/coordinator/test_answers.py.
"""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.state import health
from sluice.errors import InvalidRequest, Overloaded
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.testing.fakes import FakeReward, FakeRollout, serving, version
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import reward_pb2, rollout_pb2
from tests.integration.coordinator_cases import Cast, Coordinator, Serve

pytestmark = pytest.mark.integration

STEPS = 12


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


class LyingRollout(FakeRollout):
    """Lies in every sample but those of probes: otherwise it would never get a group."""

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self.lies: Iterator[dict[str, Any]] = itertools.cycle(LIES_OF_A_ROLLOUT)
        self.told = 0

    async def sample(self, request: rollout_pb2.GenerateRequest, *others: Any) -> common.Sample:
        sample = await super().sample(request, *others)
        if not request.request_id.startswith("probe"):
            self.told += 1
            lie(sample, next(self.lies))
        return sample


class RefusingRollout(FakeRollout):
    """Refuses at once, in turn for good, for now and without a word."""

    told = 0

    async def Generate(
        self, request: rollout_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[rollout_pb2.GenerateResponse]:
        if not request.request_id.startswith("probe"):
            self.told += 1
            if self.told % 3:
                raise InvalidRequest("no") if self.told % 3 == 1 else Overloaded("full")
            return
        async for answer in super().Generate(request, context):
            yield answer


class LyingReward(FakeReward):
    """Lies in the first grade of every answer; every fourth answer has a grade too few."""

    def __init__(self, **standing: Any) -> None:
        super().__init__(**standing)
        self.lies: Iterator[dict[str, Any]] = itertools.cycle(LIES_OF_A_REWARD)
        self.told = 0

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        answer = await super().Score(request, context)
        self.told += 1
        if self.told % 4 == 0:
            del answer.results[0]
        else:
            lie(answer.results[0], next(self.lies))
        return answer


class RefusingReward(FakeReward):
    told = 0

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        self.told += 1
        raise InvalidRequest("no") if self.told % 2 else Overloaded("full")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a liar gets work again and again while a short run lasts."""
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(health, "LONGEST_PAUSE_S", 0.05)


@pytest.mark.parametrize("pair", [(LyingRollout, RefusingRollout), (LyingRollout, LyingRollout)])
async def test_two_lying_rollouts_beside_an_honest_one_lose_work_and_never_the_run(
    serve: Serve, cast: Cast, model: Path, pair: tuple[type[Any], type[Any]]
) -> None:
    liars = [kind(service_id=f"liar-{place}", model=model, capacity=2**31 - 1) for place, kind in enumerate(pair)]
    await _end_trained(serve, cast, liars)


@pytest.mark.parametrize("pair", [(LyingReward, RefusingReward), (LyingReward, LyingReward)])
async def test_two_lying_rewards_beside_an_honest_one_lose_work_and_never_the_run(
    serve: Serve, cast: Cast, model: Path, pair: tuple[type[Any], type[Any]]
) -> None:
    liars = [kind(service_id=f"liar-{place}", model=model, capacity=2**31 - 1) for place, kind in enumerate(pair)]
    await _end_trained(serve, cast, liars)


async def _end_trained(serve: Serve, cast: Cast, liars: list[Any]) -> None:
    changes = {"run__total_steps": STEPS, "coordinator__heartbeat_interval_s": 0.05, "launch__check_reward": False}
    async with serving(liars[0]), serving(liars[1]), serve(**changes) as run:
        for each in (cast.reward, cast.rollout, *liars):
            await each.register(run)
        heard = asyncio.create_task(_quarantines(run))
        await cast.learner.register(run)
        await cast.learner.train(run, range(STEPS))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert (status.step, status.ledger.trained, status.ledger.closed) == (STEPS, 4 * STEPS, True)
        assert all(liar.told >= health.FEWEST_FAILURES for liar in liars)
        assert {liar.service_id for liar in liars} <= await heard


async def _quarantines(run: Coordinator) -> set[str]:
    """The members that were quarantined until the run's end."""
    found: set[str] = set()
    async for event in run.stub.WatchEvents(pb.WatchEventsRequest(), timeout=60):
        if event.kind == "service_quarantined":
            found.add(event.labels["service_id"])
    return found


async def test_the_status_names_a_liar_with_what_it_did(
    serve: Serve, cast: Cast, model: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr(health, "LONGEST_PAUSE_S", 60.0)
    liar = LyingRollout(service_id="liar", model=model)
    liar.lies = itertools.repeat({"token_ids": pack_ids([5, 999_999, 2])})
    async with serving(liar), serve(launch__check_reward=False) as run:
        for each in (cast.reward, cast.rollout, liar, cast.learner):
            await each.register(run)

        def is_named(status: pb.GetStatusResponse) -> bool:
            return any(service.state == pb.SERVICE_STATE_QUARANTINED for service in status.services)

        status = await run.until(is_named)
        [named] = [service for service in status.services if service.state == pb.SERVICE_STATE_QUARANTINED]
        waits = [f"{wait.who} {wait.why}" for wait in status.waits]
        assert named.service_id == "liar"
        assert any(
            "liar quarantined: no work for 60 s: 3 of its last 3" in wait and "token id 999999" in wait
            for wait in waits
        )
