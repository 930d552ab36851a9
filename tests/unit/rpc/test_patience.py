"""How long a service waits for a coordinator that does not answer: from the first failure on, and no longer."""

import asyncio
from collections.abc import Callable

import grpc
import pytest

from sluice.errors import Unavailable
from sluice.rpc.registration import Registration
from sluice.testing import ManualClock
from sluice.v1 import coordinator_pb2 as pb

PATIENCE_S = 120.0


def registration(clock: ManualClock) -> Registration:
    return Registration(
        coordinator="unused",
        describe=pb.RegisterRequest,
        beat=pb.HeartbeatRequest,
        patience_s=PATIENCE_S,
        clock=clock,
    )


def unreachable() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="reset")


async def outcome(clock: ManualClock, call: Callable[[], str], *, for_s: float) -> "asyncio.Task[str]":
    """The call after so many seconds, ended or not."""

    async def called() -> str:
        return call()

    task = asyncio.create_task(registration(clock).patiently(called, "GetBatch"))
    for _ in range(round(for_s)):
        await asyncio.sleep(0)
        await clock.advance(1.0)
    return task


async def test_a_call_that_breaks_after_a_long_wait_is_made_again() -> None:
    clock, calls = ManualClock(), 0

    def breaks_once() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            clock.skip(10 * PATIENCE_S)  # a long poll, or this process was stopped
            raise unreachable()
        return "answer"

    task = await outcome(clock, breaks_once, for_s=3)
    assert await task == "answer"


async def test_patience_ends_after_its_time_of_failures() -> None:
    clock = ManualClock()

    def breaks() -> str:
        raise unreachable()

    task = await outcome(clock, breaks, for_s=PATIENCE_S - 3)
    assert not task.done()
    for _ in range(6):
        await clock.advance(1.0)
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="GetBatch: the coordinator at unused did not answer for 120 s"):
        await task


async def test_every_call_has_the_whole_patience() -> None:
    clock, failures = ManualClock(), 0

    def recovers() -> str:
        nonlocal failures
        failures += 1
        if failures % 3:
            raise unreachable()
        return "answer"

    for _ in range(3):
        task = await outcome(clock, recovers, for_s=3)
        assert await task == "answer"
        clock.skip(PATIENCE_S)
