"""The engine's thread: order of commands, delivery, back-pressure, failure."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.rollout.engine import FinishedSample, FinishReason, SampleRequest
from services.rollout.engine_loop import EngineFailed, EngineLoop
from services.rollout.engine_watch import hung_s
from sluice.errors import InvalidRequest, NotReady, Overloaded
from sluice.policy_version import PolicyVersion
from sluice.testing import ManualClock, assert_eventually
from sluice.weights.manifest import Manifest, plan
from sluice.weights.snapshot import Packer
from tests.unit.rollout.fake_engine import FakeEngine

EMPTY = np.zeros(4, np.uint8)


def manifest(number: int) -> Manifest:
    packer = Packer(plan([("w", "float32", (1,))], bucket_bytes=4))
    packer.put("w", np.zeros(1, np.float32))
    return packer.seal(PolicyVersion(lineage="a", number=number)).manifest


def requests(*names: str, max_tokens: int = 4) -> list[SampleRequest]:
    return [
        SampleRequest(sample_id=name, prompt_token_ids=(1,), seed=0, temperature=1.0, max_tokens=max_tokens)
        for name in names
    ]


@pytest.fixture
async def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def loop(engine: FakeEngine) -> AsyncIterator[EngineLoop]:
    made = EngineLoop(engine, max_samples=10)
    made.start()
    await made.load_weights(manifest(0), EMPTY, inflight="keep")
    yield made
    engine.gate.set()
    made.close()


async def collect(loop: EngineLoop, *names: str, max_tokens: int = 4) -> dict[str, FinishedSample]:
    events = loop.generate(requests(*names, max_tokens=max_tokens))
    return {event.sample_id: event async for event in events if isinstance(event, FinishedSample)}


async def test_every_sample_is_delivered_to_the_call_that_asked_for_it(loop: EngineLoop) -> None:
    first, second = await asyncio.gather(collect(loop, "a/0", "a/1"), collect(loop, "b/0", max_tokens=7))
    assert {name: len(sample.token_ids) for name, sample in (first | second).items()} == {"a/0": 4, "a/1": 4, "b/0": 7}
    assert loop.running == 0


async def test_weights_switch_between_two_steps_and_spans_say_where(loop: EngineLoop, engine: FakeEngine) -> None:
    engine.gate.clear()
    task = asyncio.create_task(collect(loop, "s", max_tokens=50))
    await asyncio.sleep(0)
    push = asyncio.create_task(loop.load_weights(manifest(1), EMPTY, inflight="keep"))
    await asyncio.sleep(0)  # both wait for the engine's thread before the thread may go on
    engine.gate.set()
    await push
    assert loop.version == PolicyVersion(lineage="a", number=1)
    sample = (await task)["s"]
    assert sample.spans[-1].version.number == 1
    assert [span.start for span in sample.spans[1:]] == [span.end for span in sample.spans[:-1]]
    assert (sample.spans[0].start, sample.spans[-1].end) == (0, 50)


async def test_finish_lets_samples_end_and_starts_newer_ones_under_the_new_version(
    loop: EngineLoop, engine: FakeEngine
) -> None:
    engine.gate.clear()
    running = asyncio.create_task(collect(loop, "s", max_tokens=50))
    await asyncio.sleep(0)
    push = asyncio.create_task(loop.load_weights(manifest(1), EMPTY, inflight="finish", finish_s=60.0))
    await asyncio.sleep(0)
    newer = asyncio.create_task(collect(loop, "late", "later"))
    await asyncio.sleep(0)
    leaver = asyncio.create_task(collect(loop, "leaver", max_tokens=10**9))
    await asyncio.sleep(0)
    leaver.cancel()
    engine.gate.set()
    await push
    assert {span.version.number for span in (await running)["s"].spans} == {0}
    assert {span.version.number for sample in (await newer).values() for span in sample.spans} == {1}
    assert await loop.drain(timeout_s=5.0) == []


async def test_finish_aborts_what_is_still_running_in_the_end(loop: EngineLoop) -> None:
    task = asyncio.create_task(collect(loop, "s", max_tokens=10**9))
    await asyncio.sleep(0)
    await loop.load_weights(manifest(1), EMPTY, inflight="finish", finish_s=0.01)
    assert (await task)["s"].finish_reason is FinishReason.ABORT
    assert loop.version == PolicyVersion(lineage="a", number=1)


async def test_a_push_that_waits_outlives_its_caller_and_the_next_one_follows(
    loop: EngineLoop, engine: FakeEngine
) -> None:
    engine.gate.clear()
    task = asyncio.create_task(collect(loop, "s", max_tokens=20))
    await asyncio.sleep(0)
    left = asyncio.create_task(loop.load_weights(manifest(1), EMPTY, inflight="finish", finish_s=60.0))
    await asyncio.sleep(0)
    left.cancel()
    push = asyncio.create_task(loop.load_weights(manifest(2), EMPTY, inflight="finish", finish_s=60.0))
    await asyncio.sleep(0)
    engine.gate.set()
    await push
    assert [span.version.number for span in (await task)["s"].spans] == [0]
    assert loop.version == PolicyVersion(lineage="a", number=2)


async def test_abort_gives_back_running_samples_before_the_switch(loop: EngineLoop) -> None:
    task = asyncio.create_task(collect(loop, "s", max_tokens=10**9))
    await asyncio.sleep(0)
    await loop.load_weights(manifest(1), EMPTY, inflight="abort")
    sample = (await task)["s"]
    assert sample.finish_reason is FinishReason.ABORT
    assert {span.version.number for span in sample.spans} <= {0}


async def test_leaving_the_stream_aborts_what_still_runs(loop: EngineLoop, engine: FakeEngine) -> None:
    engine.gate.clear()
    task = asyncio.create_task(collect(loop, "s", max_tokens=10**9))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    engine.gate.set()
    assert await loop.drain(timeout_s=5.0) == []
    assert not engine.running


async def test_an_aborted_sample_is_delivered_with_what_it_has(loop: EngineLoop) -> None:
    task = asyncio.create_task(collect(loop, "s", max_tokens=10**9))
    await asyncio.sleep(0)
    await loop.abort(["s", "unknown"])
    assert (await task)["s"].finish_reason is FinishReason.ABORT


async def test_draining_takes_nothing_new_and_aborts_after_its_time(loop: EngineLoop) -> None:
    task = asyncio.create_task(collect(loop, "s", max_tokens=10**9))
    await asyncio.sleep(0)
    assert await loop.drain(timeout_s=0.01) == ["s"]
    assert (await task)["s"].finish_reason is FinishReason.ABORT
    with pytest.raises(NotReady, match="draining"):
        await collect(loop, "late")


async def test_more_samples_than_the_bound_are_refused(loop: EngineLoop) -> None:
    with pytest.raises(Overloaded, match="at most 10"):
        await collect(loop, *(f"s{index}" for index in range(11)))


async def test_a_sample_id_runs_once_at_a_time(loop: EngineLoop, engine: FakeEngine) -> None:
    engine.gate.clear()
    task = asyncio.create_task(collect(loop, "s"))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequest, match="s is running already"):
        await collect(loop, "s")
    engine.gate.set()
    assert "s" in await task


async def test_nothing_is_generated_before_the_first_weights(engine: FakeEngine) -> None:
    loop = EngineLoop(engine, max_samples=10)
    loop.start()
    with pytest.raises(NotReady, match="no weights of the run"):
        await collect(loop, "s")
    loop.close()
    assert engine.closed


async def test_a_failing_step_fails_every_request_and_every_later_call(loop: EngineLoop, engine: FakeEngine) -> None:
    engine.gate.clear()
    tasks = [asyncio.create_task(collect(loop, name, max_tokens=100)) for name in ("a", "b")]
    await asyncio.sleep(0)
    engine.broken = RuntimeError("out of memory")
    engine.gate.set()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, EngineFailed)
        assert "out of memory" in str(result)
    await loop.failed
    with pytest.raises(EngineFailed):
        await collect(loop, "c")
    with pytest.raises(EngineFailed):
        await loop.load_weights(manifest(1), EMPTY, inflight="keep")


async def test_a_failing_weight_load_is_the_end_too(loop: EngineLoop, engine: FakeEngine) -> None:
    engine.broken = RuntimeError("shape mismatch")
    with pytest.raises(EngineFailed):
        await loop.load_weights(manifest(1), EMPTY, inflight="keep")
    assert loop.version == PolicyVersion(lineage="a", number=0)
    assert loop.failed.done()


async def test_a_step_that_takes_too_long_is_found_and_an_idle_engine_never_is(
    loop: EngineLoop, engine: FakeEngine
) -> None:
    clock = ManualClock()
    watch = asyncio.create_task(hung_s(loop, limit_s=0.02, clock=clock))
    await collect(loop, "a")
    await assert_eventually(lambda: loop.busy_s == 0, what="idle")
    await clock.advance(100.0)
    assert not watch.done()
    engine.gate.clear()
    hanging = asyncio.create_task(collect(loop, "b"))
    await assert_eventually(lambda: loop.busy_s > 0.03, what="a step that hangs")
    loop.loading_bytes = 65_000_000_000  # while weights are loaded, their bytes have time of their own
    await clock.advance(1.0)
    assert not watch.done()
    loop.loading_bytes = 0
    await clock.advance(1.0)
    assert await watch > 0.03
    engine.gate.set()
    await hanging
