"""A batch that cannot be trained is set aside and named, and the run goes on with another batch: the learner dies on it again
and again, the learner refuses it, or its file is damaged.
"""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pyarrow.parquet as pq
import pytest

from sluice.report.group_texts import Texts, texts_on_disk
from sluice.run_dir.batch_file import batch_path, poison_files
from sluice.testing.fakes import FakeLearner
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, Coordinator, Serve

pytestmark = pytest.mark.integration


async def die(learner: FakeLearner, run: Coordinator, step: int, *, number: int) -> list[str]:
    """A new learner process takes batch `step` and is never heard of again; returns the batch's groups."""
    learner.incarnation = f"learner-{number}"
    await learner.register(run)
    return [part.group.group_id for part in (await learner.batch(run, step))[1:]]


async def test_a_batch_on_which_three_learners_died_is_set_aside_and_its_groups_are_explained(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        batches = [await die(cast.learner, run, 1, number=number) for number in range(4)]
        assert batches[0] == batches[1] == batches[2]
        assert not set(batches[3]) & set(batches[0])
        status = await run.status()
        assert status.ledger.failed["poison"] == 4
        assert status.ledger.closed
        await cast.learner.train(run, range(1, 3))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert (status.ledger.trained, status.ledger.closed) == (12, True)
        shown = await run.stub.GetGroup(pb.GetGroupRequest(group_id=batches[0][2]), timeout=5)
        assert shown.summary.state == "failed:poison"
        assert [sample.text for sample in shown.group.samples] == ["right", "wrong"]
    run_dir = tmp_path / "run"
    rows = {row["group_id"]: row for row in pq.read_table(run_dir / "ledger").to_pylist()}
    [kept] = poison_files(run_dir)
    assert (
        rows[batches[0][0]]["fault"] == f"the learner died 3 times on batch 1; the batch is kept in batches/{kept.name}"
    )
    texts = texts_on_disk(run_dir, group_id=batches[0][0], step=rows[batches[0][0]]["step"])
    assert isinstance(texts, Texts)
    assert texts.completions == ["right", "wrong"]


async def test_deaths_are_counted_across_restarts_of_the_coordinator_and_other_ends_are_no_deaths(
    serve: Serve, cast: Cast
) -> None:
    async with serve() as run:
        await cast.register(run)
        first = await die(cast.learner, run, 0, number=0)
        assert await die(cast.learner, run, 0, number=1) == first, "one death"
        beat = pb.HeartbeatRequest(service_id="learner", incarnation="learner-1", draining=True)
        await run.stub.Heartbeat(beat, timeout=5)
        assert await die(cast.learner, run, 0, number=2) == first, "a learner that said that it leaves did not die"
    async with serve() as run:
        await cast.register(run)
        assert await die(cast.learner, run, 0, number=3) == first, "the coordinator ended too: nobody died of the batch"
        assert await die(cast.learner, run, 0, number=4) == first, "two deaths"
        assert not set(await die(cast.learner, run, 0, number=5)) & set(first)
        assert (await run.status()).ledger.failed["poison"] == 4


async def test_a_batch_that_was_committed_is_never_set_aside(serve: Serve, cast: Cast) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        batches = [await die(cast.learner, run, 0, number=number) for number in range(5)]
        assert all(batch == batches[0] for batch in batches)
        assert (await run.status()).ledger.trained == 4


@pytest.mark.parametrize("deaths", [0, 5])
async def test_the_number_of_deaths_is_a_setting_and_0_is_never(serve: Serve, cast: Cast, deaths: int) -> None:
    async with serve(coordinator__max_batch_deaths=deaths) as run:
        await cast.register(run)
        batches = [await die(cast.learner, run, 0, number=number) for number in range(6)]
        assert len({json.dumps(batch) for batch in batches}) == (2 if deaths else 1)


async def refuse(learner: FakeLearner, run: Coordinator, step: int, digest: str) -> list[pb.GetBatchResponse]:
    """Tells that the learner cannot train the batch; returns the parts of the next one."""
    why = "group g, sample 1: token_ids: must be 0 to 63, the ids of the model, got 999999"
    request = pb.GetBatchRequest(step=step, wait_s=20, fence=learner.fence, unusable_digest=digest, unusable_why=why)
    return [part async for part in run.stub.GetBatch(request, timeout=60)]


async def test_a_batch_that_the_learner_refuses_is_set_aside_at_once_and_its_groups_say_why(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve(coordinator__max_batch_deaths=0) as run:
        await cast.register(run)
        first = await cast.learner.batch(run, 0)
        second = await refuse(cast.learner, run, 0, first[0].header.digest)
        assert not {part.group.group_id for part in first[1:]} & {part.group.group_id for part in second[1:]}
        again = await refuse(cast.learner, run, 0, first[0].header.digest)
        assert again[0] == second[0], "a refusal that is told twice counts once"
        assert (await run.status()).ledger.failed["poison"] == 4
        await cast.learner.train(run, range(3))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert (status.ledger.trained, status.ledger.closed) == (12, True)
    rows = {row["group_id"]: row for row in pq.read_table(tmp_path / "run" / "ledger").to_pylist()}
    [kept] = poison_files(tmp_path / "run")
    fault = rows[first[1].group.group_id]["fault"]
    assert fault.startswith("the learner cannot train batch 0: group g, sample 1: token_ids: must be 0 to 63")
    assert fault.endswith(f"; the batch is kept in batches/{kept.name}")


async def test_a_batch_that_was_committed_is_not_set_aside_when_a_restored_learner_refuses_it(
    serve: Serve, cast: Cast
) -> None:
    async with serve() as run:
        await cast.register(run)
        first = await cast.learner.batch(run, 0)
        await cast.learner.commit(run, 0, first)
        assert (await refuse(cast.learner, run, 0, first[0].header.digest))[0] == first[0]
        assert (await run.status()).ledger.trained == 4


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


DAMAGES: list[Callable[[Path], object]] = [tear, change, Path.unlink, lambda path: path.write_bytes(b"\0\0")]


async def test_a_batch_whose_file_was_damaged_before_it_was_trained_is_set_aside(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve() as run:
        await cast.register(run)
        seen = {part.group.group_id for part in (await cast.learner.batch(run, 0))[1:]}
        for number, damage in enumerate(DAMAGES, 1):
            damage(batch_path(tmp_path / "run", 0))
            another = {part.group.group_id for part in (await cast.learner.batch(run, 0))[1:]}
            assert not seen & another
            assert (await run.status()).ledger.failed["poison"] == 4 * number
            seen |= another
        await cast.learner.train(run, range(3))
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert (status.ledger.trained, status.ledger.closed) == (12, True)


async def test_a_damaged_file_of_a_batch_that_was_committed_is_an_error_with_its_name(
    serve: Serve, cast: Cast, tmp_path: Path
) -> None:
    async with serve() as run:
        await cast.register(run)
        await cast.learner.train(run, range(1))
        path = batch_path(tmp_path / "run", 0)
        whole = path.read_bytes()
        for damage in DAMAGES:
            path.write_bytes(whole)
            damage(path)
            with pytest.raises(grpc.aio.AioRpcError, match=r"batch (0|file)"):
                await cast.learner.batch(run, 0)
