"""A rollback against a real Redis: what is given up, what goes on, who is refused, and killed in every place."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest

from services.coordinator.recovery import rollback_files
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import Unavailable
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.lineage import LineageBook
from sluice.process import exit_codes
from sluice.report.group_page import group_page
from sluice.report.group_texts import Texts, texts_on_disk
from sluice.report.ledger_page import account_of_files
from sluice.report.metrics import read_metrics
from sluice.run_dir.checkpoints import STATE, steps
from sluice.tasks import mixadd3
from sluice.testing.fakes import version
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import rollout_pb2
from tests.integration.coordinator_cases import Coordinator, small_config
from tests.integration.run_scene import Scene, refusal_of, write_checkpoint

pytestmark = pytest.mark.integration


class Run(Scene):
    """A run with checkpoints on disk."""

    async def save(self, run: Coordinator, number: int) -> None:
        """The learner completes a checkpoint."""
        write_checkpoint(self.run_dir, number, self.learner.lineage)
        saved = pb.CommitCheckpointRequest(
            version=version(number, self.learner.lineage), path=f"step-{number}", fence=self.learner.fence
        )
        await run.stub.CommitCheckpoint(saved, timeout=5)

    async def train(self, run: Coordinator, number: int, *, saved: tuple[int, ...] = (2, 4)) -> None:
        """Trains up to version `number`, with checkpoints on the way."""
        for step in range(self.learner.version, number):
            await self.learner.train(run, range(step, step + 1))
            if step + 1 in saved:
                await self.save(run, step + 1)

    async def learner_starts_again(self, at: int, lineage: str) -> None:
        """As the launcher does: another process, from the checkpoint that is left."""
        self.learner.incarnation += "'"
        self.learner.version, self.learner.lineage = at, lineage
        self.learner.trained = self.learner.trained[:at]

    def rows(self) -> dict[str, Mapping[str, Any]]:
        rows = pq.read_table(self.run_dir / "ledger").to_pylist()
        assert len({row["group_id"] for row in rows}) == len(rows)
        return {row["group_id"]: row for row in rows}

    @property
    def told(self) -> list[dict[str, Any]]:
        return [dict(line) for line in rollback_files.recorded(self.run_dir)]


async def roll_back(run: Coordinator, to: int, *, preview: bool = False) -> pb.RollbackResponse:
    return await run.stub.Rollback(pb.RollbackRequest(to=to, preview=preview), timeout=10)


async def ended(run: Coordinator) -> int:
    async with asyncio.timeout(10):
        return await asyncio.shield(run.task)


@pytest.fixture
async def scene(model: Path, tmp_path: Path, redis_server: EmbeddedRedis) -> AsyncIterator[Run]:
    made = Run(model=model, run_dir=tmp_path / "run", redis_url=redis_server.url)
    async with made.standing():
        yield made


async def test_a_run_goes_on_from_the_checkpoint_under_a_new_lineage_and_the_ledger_closes(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        dropped = {group_id: step.step for step in scene.learner.trained[2:] for group_id in step.group_ids}
        kept = [group_id for step in scene.learner.trained[:2] for group_id in step.group_ids]
        await run.until(lambda status: scene.rollout.applied[-1] == 4 and status.ledger.queued == 4)
        before = (await run.status()).ledger
        preview = await roll_back(run, 2, preview=True)
        assert (preview.to, preview.reached, preview.lineage) == (2, 4, "")
        assert dict(preview.groups) == {"trained": 8, "assigned": 0, "queued": 4, "open": 0}
        assert dict(preview.tokens) == {"trained": 48, "assigned": 0, "queued": 24, "open": 0}
        assert list(preview.checkpoints) == [4]
        assert (await run.status()).step == 4, "a preview changes nothing"
        made = await roll_back(run, 2)
        assert made.lineage == "b"
        assert made.groups == preview.groups
        assert await ended(run) == exit_codes.AGAIN
    assert sorted(steps(scene.run_dir / "checkpoints")) == [2]
    assert (scene.run_dir / "checkpoints" / "rolled-back-1" / "step-4" / STATE).exists()
    assert [path.name for path in (scene.run_dir / "batches").glob("*.groups")] == []
    rows = scene.rows()
    assert {rows[group_id]["term"] for group_id in dropped} == {"rollback"}
    assert {rows[group_id]["term"] for group_id in kept} == {"trained"}
    assert {group_id: rows[group_id]["step"] for group_id in dropped} == dropped
    async with scene.serve() as run:
        status = await run.status()
        assert (status.step, status.version) == (2, version(2))
        assert (status.ledger.trained, status.ledger.rollback, status.ledger.queued) == (8, 12, 0)
        assert (status.ledger.tokens["trained"], status.ledger.tokens["rollback"]) == (48, 72)
        assert status.ledger.generated_tokens == before.generated_tokens
        assert status.ledger.closed
        assert [(made.to, made.lineage, made.reached) for made in status.rollbacks] == [(2, "b", 4)]
        one = next(iter(dropped))
        found = await run.stub.GetGroup(pb.GetGroupRequest(group_id=one), timeout=5)
        assert (found.summary.state, found.summary.step) == ("rollback", 2)
        page = group_page(json.loads(found.row_json), config=small_config(scene.model))
        assert "then the run was rolled back" in page
        assert "assigned or trained, then rolled back: step 2" in page
        assert isinstance(texts_on_disk(scene.run_dir, group_id=one, step=2), Texts), "set aside, and still to be read"
        old = await refusal_of(scene.learner.register(run))
        assert old[0] is grpc.StatusCode.ABORTED
        assert "step 2 as version a3, which was rolled back" in old[1]
        scene.learner.trained = []
        assert (
            "holds version a4, the run was rolled back to version 2"
            in (await refusal_of(scene.learner.register(run)))[1]
        )
        await scene.learner_starts_again(2, "b")
        await scene.register(run)
        await run.until(lambda _: scene.rollout.engine.version == version(2, "b"))
        assert (await run.status()).version == version(2, "b")
        await scene.train(run, 4)
        status = await run.until(lambda status: status.version == version(4, "b"))
        assert not (scene.run_dir / "checkpoints" / "rolled-back-1").exists(), "the run has come as far again"
        assert not (scene.run_dir / "batches" / "rolled-back-1").exists()
        await scene.learner.train(run, range(4, 5))
        await scene.learner.batch(run, 5)
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
    assert (status.ledger.trained, status.ledger.rollback, status.ledger.closed) == (20, 12, True)
    rows = scene.rows()
    assert sorted(row["step"] for row in rows.values() if row["term"] == "trained") == sorted([*range(5)] * 4)
    prompts = [row["prompt_id"] for row in rows.values()]
    assert len(set(prompts)) == len(prompts), "the surviving history gets other prompts"
    assert account_of_files(scene.run_dir).closed


async def test_readers_of_the_metrics_see_the_surviving_history(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        await run.stub.Evaluate(pb.EvaluateRequest(), timeout=10)
        assert [made.version.number for made in (await run.status()).evaluations] == [0, 4]
        await roll_back(run, 2)
    metrics = read_metrics(scene.run_dir)
    assert [row["step"] for row in metrics.steps] == [0, 1]
    assert [row["version"] for row in metrics.evaluations] == [0]
    async with scene.serve() as run:
        assert [made.version.number for made in (await run.status()).evaluations] == [0]


@pytest.mark.parametrize("broken", ["mint", "roll_back", "give_up", "mark_rolled_back", "record"])
async def test_a_rollback_that_was_killed_in_any_place_has_happened_whole_or_not_at_all(
    scene: Run, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        with monkeypatch.context() as patched:
            if broken == "mint":
                patched.setattr(LineageBook, "mint", _fails(LineageBook.mint))
            elif broken == "roll_back":
                patched.setattr(Store, "roll_back", _fails_once_done(Store.roll_back))
            elif broken == "mark_rolled_back":
                patched.setattr(RunFiles, "mark_rolled_back", _fails_once_done(RunFiles.mark_rolled_back))
            else:
                patched.setattr(rollback_files, broken, _fails(getattr(rollback_files, broken)))
            await refusal_of(roll_back(run, 2))
            assert await ended(run) == exit_codes.AGAIN
        assert scene.told == []
    async with scene.serve() as run:
        status = await run.status()
        assert status.ledger.closed
        if broken == "mint":
            assert (status.step, status.ledger.trained, status.ledger.rollback) == (4, 16, 0)
            await scene.register(run)
            await roll_back(run, 2)
        else:
            assert (status.step, status.ledger.trained) == (2, 8)
            assert len(status.rollbacks) == 1
    async with scene.serve() as run:
        (told,) = scene.told
        assert sorted(steps(scene.run_dir / "checkpoints")) == [2]
        assert account_of_files(scene.run_dir).groups["rollback"] == sum(told["groups"].values())
        await scene.learner_starts_again(2, told["lineage"])
        await scene.register(run)
        await scene.finish(run, range(2, 5))
    assert account_of_files(scene.run_dir).closed
    assert len(scene.told) == 1


async def test_a_redis_that_forgot_the_rollback_is_filled_again_from_the_surviving_history(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        before = await scene.remember()
        await roll_back(run, 2)
    async with scene.serve() as run:
        await scene.learner_starts_again(2, "b")
        await scene.register(run)
        await scene.train(run, 3)
    await scene.forget(before)
    async with scene.serve() as run:
        assert [made.lineage for made in (await run.status()).rollbacks] == ["b"]
        scene.learner.incarnation = "learner-z"
        await scene.register(run)
        status = await run.status()
        assert (status.step, status.ledger.trained, status.ledger.closed) == (3, 12, True)
        await scene.finish(run, range(3, 5))
    assert [row["step"] for row in read_metrics(scene.run_dir).steps] == [0, 1, 2, 3, 4]


async def test_a_finished_run_is_rolled_back_where_it_lies_and_trained_on(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        await scene.finish(run, range(4, 5))
        code, text = await refusal_of(roll_back(run, 4))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "has ended (finished)" in text
    async with scene.serve(idle=True) as run:
        made = await roll_back(run, 4)
        assert (made.reached, list(made.checkpoints), made.groups["trained"]) == (5, [], 4)
    async with scene.serve(idle=True) as run:
        assert (await run.status()).state == pb.RUN_STATE_STOPPED
    async with scene.serve(reopen=True) as run:
        await scene.learner_starts_again(4, "b")
        await scene.register(run)
        await scene.finish(run, range(4, 5))


async def test_a_run_can_go_back_to_the_base_model_and_twice(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4)
        await roll_back(run, 2)
    async with scene.serve() as run:
        await scene.learner_starts_again(2, "b")
        await scene.register(run)
        await scene.train(run, 3, saved=(3,))
        await roll_back(run, 0)
    assert list(steps(scene.run_dir / "checkpoints")) == []
    async with scene.serve() as run:
        assert [(made.to, made.lineage) for made in (await run.status()).rollbacks] == [(2, "b"), (0, "c")]
        await scene.learner_starts_again(0, "c")
        await scene.register(run)
        await scene.finish(run, range(5))
    assert read_metrics(scene.run_dir).steps[0]["step"] == 0


async def test_a_checkpoint_that_an_old_learner_completes_late_is_set_aside_too(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 3)
        await roll_back(run, 2)
    write_checkpoint(scene.run_dir, 4, "a")
    async with scene.serve() as run:
        assert sorted(steps(scene.run_dir / "checkpoints")) == [2]
        await scene.learner_starts_again(2, "b")
        await scene.register(run)


async def test_what_cannot_be_gone_back_to_is_refused(scene: Run) -> None:
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 4, saved=(2, 3, 4))
        (scene.run_dir / "checkpoints" / "step-3" / STATE).write_text("")
        for to, code, said in (
            (4, "INVALID_ARGUMENT", "must go back to a version before 4, the newest one, got 4"),
            (-1, "INVALID_ARGUMENT", "got -1"),
            (1, "NOT_FOUND", "cannot go back to step-1"),
            (3, "NOT_FOUND", "size or hash differs); those that verify: step-2"),
        ):
            status, text = await refusal_of(roll_back(run, to))
            assert status.name == code
            assert said in text
            assert (await run.status()).step == 4


async def test_an_open_group_ends_with_the_samples_it_had_and_one_that_had_none_goes_on(
    scene: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = scene.rollout.Generate
    hold = asyncio.Event()

    async def one_sample_only(request: rollout_pb2.GenerateRequest, context: Any) -> Any:
        if not hold.is_set():
            async for answer in whole(request, context):
                yield answer
            return
        number = int(request.request_id.rpartition(".")[0][-7:])
        if number % 2:
            async for answer in whole(request, context):
                yield answer
                break
        await asyncio.Event().wait()

    monkeypatch.setattr(scene.rollout, "Generate", one_sample_only)
    await scene.rollout.stop()
    await scene.rollout.start()
    async with scene.serve() as run:
        await scene.register(run)
        await scene.train(run, 2)
        hold.set()
        await scene.train(run, 3)
        status = await run.until(lambda status: status.ledger.in_flight == 4 and status.ledger.tokens["in_flight"] > 0)
        made = await roll_back(run, 2)
        assert made.groups["open"] == 2
        assert made.tokens["open"] == status.ledger.tokens["in_flight"] == 6
    hold.clear()
    async with scene.serve() as run:
        ledger = (await run.status()).ledger
        assert (ledger.pending, ledger.closed) == (2, True)
        assert ledger.generated_tokens == status.ledger.generated_tokens
        await scene.learner_starts_again(2, "b")
        await scene.register(run)
        await scene.finish(run, range(2, 5))


def _fails(whole: Any) -> Any:
    def fails(*args: Any, **named: Any) -> Any:
        raise OSError(28, "No space left on device")

    return fails


def _fails_once_done(whole: Any) -> Any:
    async def fails_once_done(*args: Any, **named: Any) -> Any:
        await whole(*args, **named)
        raise Unavailable("gone for now")

    return fails_once_done


async def test_prompts_that_a_sampler_chose_are_the_same_after_a_restart_a_rollback_and_a_repair(
    scene: Run, tmp_path: Path
) -> None:
    sums = {mixadd3.prompt_at(seed=0, index=index, split="train") for index in range(14)}
    rows = [
        {"data_source": "mixadd3", "prompt": text, "reward_model": {"ground_truth": mixadd3.answer(text)}}
        for text in sorted(sums)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    scene.settings = {"data__train_files": [str(tmp_path / "sums.jsonl")], "data__sampler": "difficulty"}
    drawn: dict[str, tuple[int, str]] = {}

    def same(found: Mapping[str, Any], *, again: frozenset[str] = frozenset()) -> None:
        """Every group has the prompt that it had whenever it was looked at before."""
        for group_id, life in found.items():
            prompt = (life["prompt_row"], life["prompt_id"])
            assert group_id in again or drawn.setdefault(group_id, prompt) == prompt, group_id

    async def look(run: Coordinator) -> None:
        listed = await run.stub.ListGroups(pb.ListGroupsRequest(), timeout=5)
        for one in listed.groups:
            found = await run.stub.GetGroup(pb.GetGroupRequest(group_id=one.group_id), timeout=5)
            same({one.group_id: json.loads(found.row_json)})

    async with scene.serve(12) as run:
        await scene.register(run)
        await scene.train(run, 6, saved=(2, 4))
        await look(run)
    former = dict(drawn)
    async with scene.serve(12) as run:
        await scene.register(run)
        await scene.train(run, 7)
        await look(run)
        assert len(drawn) > len(former) > 24
        await roll_back(run, 4)
        assert await ended(run) == exit_codes.AGAIN
    same(scene.rows())
    await scene.learner_starts_again(4, "b")
    async with scene.serve(12) as run:
        await scene.register(run)
        await scene.train(run, 8, saved=())
        before = await scene.remember()
        await scene.train(run, 9, saved=())
        await look(run)
    await scene.forget(before)
    known = int(await scene.redis.hget(f"sluice:{{{scene.keys}}}:meta", "admissions") or 0)
    trained = set(scene.learner.ids)
    again = frozenset(one for one in drawn if int(one.rsplit("-", 1)[1]) >= known and one not in trained)
    assert again, "Redis forgot groups that no step had trained; they are drawn anew"
    async with scene.serve(12) as run:
        await scene.register(run)
        await scene.train(run, 12, saved=())
        await scene.learner.batch(run, 12)
        status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
        assert status.ledger.closed
        assert {"sampling/coverage", "sampling/predicted_acceptance", "sampling/calibration_error"} <= set(
            status.metrics
        )
    ended_rows = scene.rows()
    same(ended_rows, again=again)
    chosen = [row for row in ended_rows.values() if row["chosen"]]
    assert len(chosen) > 10
    assert all(0 < row["predicted"] < 1 for row in ended_rows.values() if row["predicted"] >= 0)
    # A step during which no group was judged has none: its batch was full before the former step was booked.
    assert any(step.get("sampling/chosen_fraction", 0) > 0 for step in read_metrics(scene.run_dir).steps)
