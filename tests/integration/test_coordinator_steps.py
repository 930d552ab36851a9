"""A learner's run over real gRPC and a real Redis: registration, batches, commits, a run that is opened again."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest
from blake3 import blake3

from services.coordinator.storage.redis_store import Store
from sluice.report.sample_tokens import kept_group
from sluice.run_dir.batch_file import batch_path
from sluice.run_dir.token_figures import example_of
from sluice.testing.fakes import digest
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Serve, code_of, state_is

pytestmark = pytest.mark.integration


async def test_three_steps_from_registration_to_a_closed_ledger(serve: Serve, cast: Cast, tmp_path: Path) -> None:
    async with serve() as run:
        await cast.register(run)
        await run.until(lambda status: len(status.evaluations) == 1)
        await cast.learner.train(run, range(3))
        last = await cast.learner.batch(run, 3)
        assert [part.WhichOneof("part") for part in last] == ["not_ready"]
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.step, status.version.number, len(status.evaluations)) == (3, 3, 2)
        assert status.evaluations[1].avg_at_n == 0.5
        ended = await cast.learner.batch(run, 3)
        assert ended[0].not_ready.ended
        ledger = status.ledger
        assert ledger.closed
        assert ledger.trained == 12
        assert ledger.filtered_all_wrong >= 2
        assert ledger.trained_tokens == ledger.tokens["trained"] == 12 * 2 * 3
        assert sum(ledger.tokens.values()) == ledger.generated_tokens == 6 * ledger.admitted
        assert status.metrics["ledger/closed"] == 1
        assert status.metrics["ledger/received_tokens"] == ledger.generated_tokens
        assert ledger.pending == ledger.in_flight == ledger.queued == ledger.assigned == 0
    rows = pq.read_table(tmp_path / "run" / "ledger").to_pylist()
    assert len({row["group_id"] for row in rows}) == len(rows) == ledger.admitted
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2]
    assert [line["ledger/closed"] for line in lines if line["kind"] == "step"] == [1, 1, 1]
    assert [line["weights_digest"] for line in lines if line["kind"] == "step"] == [digest(1), digest(2), digest(3)]
    for line in (line for line in lines if line["kind"] == "step"):
        body = batch_path(tmp_path / "run", line["step"]).read_bytes()
        assert line["batch_digest"] == blake3(body).hexdigest()
        place = example_of(line["step"], 4)
        kept = kept_group(tmp_path / "run", cast.learner.trained[line["step"]].group_ids[place])
        assert kept is not None
        assert kept.figures is not None
        assert (kept.figures.log_ratios.tolist(), kept.figures.entropies.tolist()) == ([0.0] * 6, [0.5] * 6)
    assert cast.rollout.applied[0] == 0
    assert cast.rollout.applied[-1] == 3


async def test_a_batch_is_the_same_however_often_it_is_asked_for_and_committed_once(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        first = await cast.learner.batch(run, 0)
        assert await cast.learner.batch(run, 0) == first
        cast.learner.as_stored = False
        assert await cast.learner.batch(run, 0) == first, "plain groups are the same ones"
        assert first[0].header.groups == len(first) - 1 == 4
        for _ in range(2):
            assert (await cast.learner.commit(run, 0, first)).recorded_digest == digest(1)
        status = await run.until(lambda status: status.step == 1)
        assert status.ledger.trained == 4


async def test_calls_of_learners_with_another_fence_or_batch_are_refused(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        batch = await cast.learner.batch(run, 0)
        cast.learner.fence += 1
        assert await code_of(cast.learner.batch(run, 0)) is grpc.StatusCode.ABORTED
        assert await code_of(cast.learner.commit(run, 0, batch)) is grpc.StatusCode.ABORTED
        cast.learner.fence -= 1
        batch[0].header.digest = "of another run"
        assert await code_of(cast.learner.commit(run, 0, batch)) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_new_learner_shuts_out_the_former_one_for_good(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        old = cast.learner.fence
        cast.learner.incarnation = "learner-b"
        await cast.learner.register(run)
        assert cast.learner.fence > old
        await cast.learner.register(run)
        assert cast.learner.fence == old + 1, "the same process keeps its fence"
        refused = cast.learner.register(run, incarnation="learner-a")
        assert await code_of(refused) is grpc.StatusCode.ABORTED


async def test_a_learner_that_is_ahead_of_redis_is_refused(serve: Serve, cast: Cast) -> None:
    cast.learner.version = 2
    async with serve() as run:
        assert await code_of(cast.learner.register(run)) is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_coordinator_that_is_started_again_goes_on_where_it_was(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        handed_out = await cast.learner.batch(run, 1)
        fence = cast.learner.fence
    async with serve() as run:
        await cast.register(run)
        assert cast.learner.fence == fence
        assert await cast.learner.batch(run, 1) == handed_out
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert status.ledger.closed
        assert status.ledger.trained == 12


async def test_a_stopped_run_goes_on_when_it_is_opened_again_and_a_finished_one_does_not(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        batch = await cast.learner.batch(run, 1)
        await run.stub.Stop(pb.StopRequest(reason="enough"), timeout=5)
        await cast.learner.commit(run, 1, batch)
        status = await run.until(state_is(pb.RUN_STATE_STOPPED))
        assert (status.reason, status.step, status.ledger.closed) == ("enough", 2, True)
        assert status.ledger.pending == status.ledger.in_flight == status.ledger.assigned == 0
        assert (await cast.learner.batch(run, 2))[0].not_ready.ended
    async with serve() as run:
        assert (await run.status()).state == pb.RUN_STATE_STOPPED, "only started again, not opened again"
    async with serve(reopen=True) as run:
        assert (await run.status()).state == pb.RUN_STATE_RUNNING
        await cast.register(run)
        await cast.learner.train(run, range(2, 3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.ledger.closed, status.ledger.trained) == (True, 12)
    async with serve(reopen=True) as run:
        assert (await run.status()).state == pb.RUN_STATE_FINISHED
    async with serve(reopen=True, run__total_steps=4) as run:
        await cast.register(run)
        await cast.learner.train(run, range(3, 4))
        await cast.learner.batch(run, 4)
        assert (await run.until(state_is(pb.RUN_STATE_FINISHED))).ledger.trained == 16
    rows = pq.read_table(tmp_path / "run" / "ledger").to_pylist()
    assert len({row["group_id"] for row in rows}) == len(rows)


async def test_no_state_is_shown_that_redis_has_not(serve: Serve, cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may = asyncio.Event(), asyncio.Event()
    set_meta = Store.set_meta

    async def late(self: Store, values: Mapping[str, str]) -> None:
        if values.get("state") == "finished":
            asked.set()
            await may.wait()
        await set_meta(self, values)

    monkeypatch.setattr(Store, "set_meta", late)
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(3))
        await asked.wait()
        assert (await run.status()).state == pb.RUN_STATE_FINISHING
        may.set()
        await run.until(state_is(pb.RUN_STATE_FINISHED))


async def test_a_batch_that_was_not_trained_when_the_run_was_stopped_is_trained_after_it_is_opened_again(
    serve: Serve, cast: Cast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.run.lifecycle.STOP_GRACE_S", 0.1)
    async with serve() as run:
        await cast.register(run)
        batch = await cast.learner.batch(run, 0)
        await run.stub.Stop(pb.StopRequest(), timeout=5)
        status = await run.until(state_is(pb.RUN_STATE_STOPPED))
        assert (status.ledger.assigned, status.ledger.closed) == (4, True)
    async with serve(reopen=True) as run:
        await cast.register(run)
        assert await cast.learner.batch(run, 0) == batch
        await cast.learner.train(run, range(3))
        await cast.learner.batch(run, 3)
        status = await run.until(state_is(pb.RUN_STATE_FINISHED))
        assert (status.ledger.closed, status.ledger.trained) == (True, 12)
