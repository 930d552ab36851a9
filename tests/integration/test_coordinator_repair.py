"""A Redis that forgot the end of a run, or all of it: the learner's record wins, and the run goes on with a closed ledger."""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest

from services.coordinator.recovery import repair
from services.coordinator.state.group import group_id_of
from services.coordinator.storage.redis_scripts import RedisScripts
from services.coordinator.storage.redis_store import Store
from sluice.errors import Unavailable
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.rpc.registration import Registration
from sluice.testing import assert_eventually
from sluice.testing.fakes import version
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.run_scene import Scene, refusal_of

pytestmark = pytest.mark.integration


@pytest.fixture
async def scene(model: Path, tmp_path: Path, redis_server: EmbeddedRedis) -> AsyncIterator[Scene]:
    made = Scene(model=model, run_dir=tmp_path / "run", redis_url=redis_server.url)
    async with made.standing():
        yield made


async def test_steps_that_redis_forgot_are_booked_from_the_learners_record(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(1))
        before = await scene.remember()
        await scene.learner.train(run, range(1, 3))
        admitted = (await run.status()).ledger.admitted
    await scene.forget(before)
    async with scene.serve() as run:
        assert (await run.status()).step == 1
        await scene.register(run)
        status = await run.status()
        assert (status.step, status.version.number, status.ledger.trained) == (3, 3, 12)
        assert status.ledger.closed
        assert (await scene.finish(run, range(3, 5))).ledger.trained == 20
        trained = await run.stub.ListGroups(pb.ListGroupsRequest(state="trained"), timeout=5)
        assert max(group.admission for group in trained.groups) >= admitted - 8, "the numbers went on, not back"
    (repair,) = scene.repairs
    assert (repair["trained_steps"], repair["unknown_steps"]) == ([1, 2], [])
    again = {group["group_id"] for group in repair["generated_again"]}
    assert not again & {group_id for step in scene.learner.trained[:3] for group_id in step.group_ids}
    rows = {row["group_id"]: row for row in pq.read_table(scene.run_dir / "ledger").to_pylist()}
    assert {rows[group_id]["fault"].split(":")[0] for group_id in scene.learner.ids[4:12]} == {"repaired"}
    assert {rows[group_id]["fault"] for group_id in scene.learner.ids[12:]} == {""}
    told = rows[scene.learner.ids[11]]
    assert [sample["tokens"] for sample in told["completions"]] == [3, 3], "its batch file still tells its samples"
    assert (told["attempts"], told["data_source"]) == (None, "mixadd3")


async def test_a_prompt_that_was_trained_is_not_drawn_again_and_a_forgotten_group_keeps_its_id(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        before = await scene.remember()
        await scene.learner.train(run, range(2))
        lines = await run.stub.ListGroups(pb.ListGroupsRequest(limit=500), timeout=5)
        prompts = {line.group_id: line.prompt_id for line in lines.groups}
    await scene.forget(before)
    async with scene.serve() as run:
        await scene.register(run)
        await scene.finish(run, range(2, 5))
    rows = pq.read_table(scene.run_dir / "ledger").to_pylist()
    later = {row["group_id"]: row["prompt_id"] for row in rows}
    assert {group_id: later[group_id] for group_id in later.keys() & prompts.keys()} == {
        group_id: prompts[group_id] for group_id in later.keys() & prompts.keys()
    }
    drawn = [prompt for prompt in later.values() if prompt]
    assert len(set(drawn)) == len(drawn)


async def test_a_redis_that_is_empty_is_filled_again_and_the_ledgers_files_stay(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(2))
        saved = pb.CommitCheckpointRequest(version=version(2), path="step-2", fence=scene.learner.fence)
        await run.stub.CommitCheckpoint(saved, timeout=5)
        in_files = {row["group_id"] for row in pq.read_table(scene.run_dir / "ledger").to_pylist()}
        assert len(in_files) >= 8
        await scene.learner.train(run, range(2, 3))
        evaluated = list((await run.status()).evaluations)
        assert len(evaluated) == 1
    await scene.redis.flushall()
    async with scene.serve() as run:
        await scene.register(run)
        status = await run.status()
        assert (status.step, status.state, status.ledger.trained) == (3, pb.RUN_STATE_RUNNING, 12)
        assert status.train_wall_s > 0
        assert list(status.evaluations) == evaluated
        assert (await scene.finish(run, range(3, 5))).ledger.trained == 20
    rows = pq.read_table(scene.run_dir / "ledger").to_pylist()
    assert in_files <= {row["group_id"] for row in rows}
    (repair,) = scene.repairs
    assert repair["ended_groups"] == len(in_files)
    assert repair["trained_steps"] == [0, 1, 2]


async def test_a_redis_that_forgets_ends_the_coordinator_and_the_next_one_goes_on(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        before = await scene.remember()
        batch = await scene.learner.batch(run, 0)
        await run.until(lambda status: status.ledger.queued == 4)  # else a group on its way ends the coordinator first
        await scene.forget(before)
        code, text = await refusal_of(scene.learner.commit(run, 0, batch))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "redis has lost" in text
        with pytest.raises(Exception, match="redis has lost"):
            await asyncio.wait_for(asyncio.shield(run.task), 10)
    async with scene.serve() as run:
        early = scene.learner.commit(run, 0, batch)
        assert (await refusal_of(early))[0] is grpc.StatusCode.UNAVAILABLE, "it has to register first"
        await scene.register(run)
        assert (await run.status()).ledger.assigned == 4, "the commit is still to come"
        await scene.learner.commit(run, 0, batch)
        await scene.finish(run, range(1, 5))
    lines = [json.loads(line) for line in (scene.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [0, 1, 2, 3, 4]


async def test_a_learner_that_starts_from_an_older_checkpoint_gets_the_forgotten_batches_as_they_were(
    scene: Scene,
) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(1))
        before = await scene.remember()
        first = [await scene.learner.batch(run, 1)]
        await scene.learner.commit(run, 1, first[0])
        first.append(await scene.learner.batch(run, 2))
        await scene.learner.commit(run, 2, first[1])
    await scene.forget(before)
    scene.learner.version, scene.learner.incarnation = 1, "learner-b"
    async with scene.serve() as run:
        fence = scene.learner.fence
        await scene.register(run)
        assert scene.learner.fence > fence + 1, "Redis may have forgotten other fences"
        assert [await scene.learner.batch(run, step) for step in (1, 2)] == first
        await scene.finish(run, range(1, 5))
    assert scene.repairs[0]["assigned_steps"] == [1, 2]


@pytest.mark.parametrize("learner_restarts", [False, True])
async def test_a_run_goes_on_from_any_moment_that_redis_goes_back_to(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, learner_restarts: bool
) -> None:
    """The end of each script is such a moment. Files and learner remember everything; or the learner, since step 2."""
    moments, run_script = [await scene.remember()], RedisScripts.run

    async def remembered(self: RedisScripts, *args: Any) -> Any:
        answer = await run_script(self, *args)
        moments.append(await scene.remember())
        return answer

    monkeypatch.setattr(RedisScripts, "run", remembered)
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(2))
        saved = pb.CommitCheckpointRequest(version=version(2), path="step-2", fence=scene.learner.fence)
        await run.stub.CommitCheckpoint(saved, timeout=5)
        await scene.learner.train(run, range(2, 4))
    monkeypatch.setattr(RedisScripts, "run", run_script)
    kept, trained = await asyncio.to_thread(shutil.copytree, scene.run_dir, tmp_path / "kept"), scene.learner.trained
    for place in range(4):
        await asyncio.to_thread(shutil.rmtree, scene.run_dir)
        await asyncio.to_thread(shutil.copytree, kept, scene.run_dir)
        await scene.forget(moments[random.Random(place).randrange(len(moments))])
        scene.learner.version, scene.learner.trained = 2 if learner_restarts else 4, list(trained)
        scene.learner.incarnation = f"learner-{place}" if learner_restarts else "learner-a"
        async with scene.serve() as run:
            await scene.register(run)
            again = [await scene.learner.batch(run, step) for step in range(scene.learner.version, 4)]
            assert [batch[0].header.digest for batch in again] == [
                step.batch_digest for step in trained[scene.learner.version :]
            ]
            await scene.finish(run, range(scene.learner.version, 5))


async def test_batches_stay_exactly_while_a_checkpoint_that_is_kept_may_ask_for_them(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        for oldest, newest in ((1, 1), (1, 2), (2, 3)):
            await scene.learner.train(run, range(newest - 1, newest))
            for kept in (oldest, newest):
                (scene.run_dir / "checkpoints" / f"step-{kept}").mkdir(parents=True, exist_ok=True)
            if oldest == 2:
                (scene.run_dir / "checkpoints" / "step-1").rmdir()
            saved = pb.CommitCheckpointRequest(version=version(newest), path="-", fence=scene.learner.fence)
            await run.stub.CommitCheckpoint(saved, timeout=5)
            files = sorted(path.name for path in (scene.run_dir / "batches").iterdir())
            assert files == [f"step-{step:06d}.groups" for step in range(oldest, newest)]


async def test_a_step_whose_batch_file_is_gone_too_stands_but_cannot_be_replayed(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        before = await scene.remember()
        await scene.learner.train(run, range(2))
    await scene.forget(before)
    (scene.run_dir / "batches" / "step-000000.groups").unlink()
    async with scene.serve() as run:
        await scene.register(run)
        code, text = await refusal_of(scene.learner.batch(run, 0))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "step-000000.groups is gone" in text
        await scene.finish(run, range(2, 5))


async def test_a_repair_is_done_once(scene: Scene) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        before = await scene.remember()
        await scene.learner.train(run, range(1))
    await scene.forget(before)
    for _ in range(2):
        async with scene.serve() as run:
            await scene.register(run)
            await scene.learner.register(run)
            ledger = (await run.status()).ledger
            assert (ledger.trained, ledger.closed) == (4, True)
    assert len(scene.repairs) == 1


async def test_a_learner_waits_for_a_repair_that_takes_longer_than_a_call_however_long(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(2))
        saved = pb.CommitCheckpointRequest(version=version(2), path="step-2", fence=scene.learner.fence)
        await run.stub.CommitCheckpoint(saved, timeout=5)
    await scene.redis.flushall()
    rebook, may_go_on, asked = Store.rebook, asyncio.Event(), 0

    async def slow(self: Store, *args: Any) -> int:
        await may_go_on.wait()
        return await rebook(self, *args)

    def describe() -> pb.RegisterRequest:
        nonlocal asked
        asked += 1
        return scene.learner.registration()

    monkeypatch.setattr(Store, "rebook", slow)
    monkeypatch.setattr(repair, "ANSWER_AFTER_S", 0.02)
    async with scene.serve() as run:
        await scene.reward.register(run)
        await scene.rollout.register(run)
        code, told = await refusal_of(scene.learner.register(run))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "0 groups are booked again; the repair goes on" in told
        standing = Registration(
            coordinator=run.address, describe=describe, beat=lambda: pb.HeartbeatRequest(), patience_s=0.0
        )
        assert "the repair goes on" in (await refusal_of(scene.learner.batch(run, 2)))[1]
        waiting = asyncio.create_task(standing.register())
        await assert_eventually(lambda: asked >= 3)
        may_go_on.set()
        scene.learner.registered(await waiting)
        await standing.close()
        status = await run.status()
        assert (status.step, status.ledger.trained, status.ledger.closed) == (2, 8, True)
        assert (await scene.finish(run, range(2, 5))).ledger.trained == 20
    assert len(scene.repairs) == 1


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("broken", ["restore_batch", "admit", "rebook", "commit"])
async def test_a_repair_that_was_broken_off_is_completed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, broken: str, restarted: bool
) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        before = await scene.remember()
        await scene.learner.train(run, range(2))
        if broken != "admit":  # without the ledger's files, groups that were filtered are generated again
            saved = pb.CommitCheckpointRequest(version=version(2), path="step-2", fence=scene.learner.fence)
            await run.stub.CommitCheckpoint(saved, timeout=5)
        await scene.learner.train(run, range(2, 4))
    await scene.forget(before)
    whole, calls = getattr(Store, broken), 0

    async def fails_once_done(self: Store, *args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        done = await whole(self, *args, **named)
        if calls == 1:
            raise Unavailable("redis: gone for now")
        return done

    monkeypatch.setattr(Store, broken, fails_once_done)
    async with scene.serve() as run:
        await scene.reward.register(run)
        await scene.rollout.register(run)
        assert (await refusal_of(scene.learner.register(run)))[0] is grpc.StatusCode.UNAVAILABLE
        if not restarted:
            await scene.learner.register(run)
            assert (await scene.finish(run, range(4, 5))).ledger.trained == 20
    async with scene.serve() as run:
        await scene.register(run)
        if restarted:
            assert (await scene.finish(run, range(4, 5))).ledger.trained == 20


async def test_a_group_that_has_ended_is_not_generated_again_after_a_repair_that_was_broken_off(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, scored = scene.reward.Score, asyncio.Event()

    async def score_when_allowed(request: Any, context: Any) -> Any:
        if not request.group_id.startswith(("check", "eval")):
            await scored.wait()
        return await whole(request, context)

    monkeypatch.setattr(scene.reward, "Score", score_when_allowed)
    await scene.reward.stop()
    await scene.reward.start()
    async with scene.serve() as run:
        await scene.register(run)
        await run.until(lambda status: status.ledger.tokens["in_flight"] >= 4 * 6)
        before = await scene.remember()
        scored.set()
        await scene.learner.train(run, range(2))
        saved = pb.CommitCheckpointRequest(version=version(2), path="step-2", fence=scene.learner.fence)
        await run.stub.CommitCheckpoint(saved, timeout=5)
    await scene.forget(before)
    rebook = Store.rebook

    async def fails_once_done(self: Store, *args: Any) -> int:
        await rebook(self, *args)
        monkeypatch.setattr(Store, "rebook", rebook)
        raise Unavailable("redis: gone for now")

    monkeypatch.setattr(Store, "rebook", fails_once_done)
    async with scene.serve() as run:
        await scene.reward.register(run)
        await scene.rollout.register(run)
        assert (await refusal_of(scene.learner.register(run)))[0] is grpc.StatusCode.UNAVAILABLE
        generated = len(scene.rollout.generated)
        await scene.learner.register(run)
        await scene.finish(run, range(2, 5))
    again = {request.rpartition(".")[0] for request in scene.rollout.generated[generated:]}
    assert not again & set(scene.learner.ids[:8])


async def test_a_learner_whose_record_contradicts_redis_or_has_gaps_is_refused_by_name(scene: Scene) -> None:
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"batch_digest": "other"}, "the learner's batch of step 0 has digest other"),
        ({"weights_digest": "other"}, "the learner's weights of step 0 has digest other"),
        ({"group_ids": ["elsewhere-0000000"]}, "is not of run run"),
    ]
    async with scene.serve() as run:
        await scene.register(run)
        await scene.learner.train(run, range(2))
        recorded = list(scene.learner.trained)
        for change, said in contradictions:
            changed = pb.TrainedStep()
            changed.CopyFrom(recorded[0])
            for name, value in change.items():
                changed.ClearField(name)  # type: ignore[arg-type]
                changed.MergeFrom(pb.TrainedStep(**{name: value}))
            scene.learner.trained[0] = changed
            code, text = await refusal_of(scene.learner.register(run))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert said in text
        scene.learner.trained[:] = recorded[:1]
        code, text = await refusal_of(scene.learner.register(run))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "must be the steps before version 2" in text


async def test_a_repair_that_broke_off_between_a_batch_and_its_rows_does_not_keep_the_next_coordinator_from_starting(
    scene: Scene,
) -> None:
    """The batch names a group whose row is in a file, and which Redis still takes for open."""
    async with scene.serve():
        pass
    store = Store(url=scene.redis_url, run_id=scene.keys)
    await store.open()
    group_id = group_id_of(0, run_id=scene.run_dir.name)
    info = {"admission": 0, "cursor": "", "prompt_id": "", "admitted": None}
    await store.admit({group_id: info}, cursor="", admissions=1)
    await store.restore_batch(0, record={"ids": [group_id], "digest": "-"}, groups=[])
    await store.close()
    async with scene.serve() as run:
        ledger = (await run.status()).ledger
        assert (ledger.pending, ledger.assigned, ledger.closed) == (1, 0, True)
