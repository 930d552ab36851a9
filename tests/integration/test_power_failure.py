"""The power fails at any moment of a small run: Redis, which syncs every write, points to nothing that is gone, and the run
goes on from what is left to a closed ledger."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import pyarrow.parquet as pq
import pytest
import redis

from services.coordinator.recovery.rollback_files import recorded as recorded_rollbacks
from services.coordinator.storage.redis_scripts import RedisScripts
from services.learner.checkpoint.folders import newest_that_verifies
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.lineage import Rollback, lineage_from
from sluice.run_dir import checkpoints
from sluice.run_dir.batch_file import batch_files
from sluice.run_dir.json_lines import read_json_lines
from sluice.testing.fakes import version
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Coordinator
from tests.integration.run_scene import Scene, write_checkpoint
from tests.power_failure import Disk, Tree, put_back

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STEPS = 5
EVERYTHING = """
local all = {}
for i, key in ipairs(redis.call('KEYS', '*')) do all[2 * i - 1] = key all[2 * i] = redis.call('DUMP', key) end
return all
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What the disk and Redis hold after a power failure, and the steps trained by then."""

    files: Tree
    redis: tuple[tuple[bytes, bytes], ...]
    trained: list[pb.TrainedStep]


class Moments:
    """Every moment of a run after which the disk or Redis holds something else."""

    def __init__(self, disk: Disk, run: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client: Any = redis.Redis.from_url(run.redis_url)
        self.all: list[Moment] = []
        self._disk, self._run = disk, run
        disk.after_sync = self.note
        send = RedisScripts._together

        async def noted(store: RedisScripts, together: Any) -> Any:
            answers = await send(store, together)
            self.note()
            return answers

        monkeypatch.setattr(RedisScripts, "_together", noted)

    def note(self) -> None:
        """Redis first: a file that was synced meanwhile may only be newer."""
        found = self.client.eval(EVERYTHING, 0)
        known = tuple(sorted(zip(found[::2], found[1::2], strict=True)))
        self.all.append(Moment(files=self._disk.left(), redis=known, trained=list(self._run.learner.trained)))

    def put_back(self, moment: Moment, run_dir: Path) -> None:
        """The run directory and Redis are what they were then."""
        put_back(moment.files, run_dir)
        self.client.flushall()
        for key, value in moment.redis:
            self.client.restore(key, 0, value)


@pytest.fixture
async def recorded(
    model: Path, tmp_path: Path, redis_server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Moments, Scene]]:
    """A run with submitted prompts, checkpoints and a rollback; its directory is then out of the way."""
    scene = Scene(model=model, run_dir=tmp_path / "run", redis_url=redis_server.url)
    scene.run_dir.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch, scene.run_dir)
        moments = Moments(disk, scene, patch)
        async with scene.standing():
            async with scene.serve() as run:
                prompts = [pb.UserPrompt(data_source="mine", prompt=f"{n}+1=", ground_truth=str(n + 1)) for n in (1, 2)]
                await run.stub.SubmitPrompts(pb.SubmitPromptsRequest(prompts=prompts), timeout=5)
                await scene.register(run)
                for step in range(4):
                    await scene.learner.train(run, range(step, step + 1))
                    if step % 2:
                        await save(scene, run)
                await run.stub.Rollback(pb.RollbackRequest(to=2), timeout=10)
                await asyncio.wait_for(asyncio.shield(run.task), 10)
            async with scene.serve() as run:
                await go_on(scene, run, scene.learner.trained)
        disk.close()
    scene.run_dir.rename(tmp_path / "was")
    yield moments, scene
    moments.client.close()


async def save(scene: Scene, run: Coordinator) -> None:
    """The learner completes a checkpoint."""
    number, lineage = scene.learner.version, scene.learner.lineage
    write_checkpoint(scene.run_dir, number, lineage)
    saved = pb.CommitCheckpointRequest(
        version=version(number, lineage), path=f"step-{number}", fence=scene.learner.fence
    )
    await run.stub.CommitCheckpoint(saved, timeout=5)


async def go_on(scene: Scene, run: Coordinator, trained: list[pb.TrainedStep]) -> None:
    """A learner starts from the newest checkpoint, as the real one does, and trains to the end."""
    rollbacks = [Rollback(to=line["to"], lineage=line["lineage"]) for line in recorded_rollbacks(scene.run_dir)]
    newest = newest_that_verifies(scene.run_dir / "checkpoints", rollbacks)
    at = 0 if newest is None else checkpoints.step_of(newest)
    scene.learner.incarnation += "'"
    scene.learner.version = at
    scene.learner.lineage = lineage_from("a" if newest is None else checkpoints.lineage_of(newest), rollbacks)
    scene.learner.trained = [step for step in trained if step.step < at]
    await scene.register(run)
    await scene.finish(run, range(at, STEPS))


async def test_redis_never_points_to_what_a_power_failure_takes(
    recorded: tuple[Moments, Scene], tmp_path: Path
) -> None:
    moments, _ = recorded
    assert len(moments.all) > 100, "this shows something"
    missing: dict[str, int] = {}
    for number, moment in enumerate(moments.all):
        folder = tmp_path / f"at-{number}"
        moments.put_back(moment, folder)
        for claim in claims_without_files(moments.client, folder):
            missing.setdefault(claim, number)
    assert not missing, f"by the first of {len(moments.all)} moments: {missing}"


async def test_the_run_goes_on_from_every_moment_at_which_the_power_may_fail(
    model: Path, recorded: tuple[Moments, Scene]
) -> None:
    moments, first = recorded
    different = {json.dumps(moment.files, default=bytes.hex): moment for moment in moments.all}
    assert len(different) > 20, "this shows something"
    for number, moment in enumerate(different.values()):
        moments.put_back(moment, first.run_dir)
        scene = Scene(model=model, run_dir=first.run_dir, redis_url=first.redis_url)
        async with scene.standing(), scene.serve(reopen=True) as run:
            await go_on(scene, run, moment.trained)
        first.run_dir.rename(first.run_dir.with_name(f"done-{number}"))


def claims_without_files(client: Any, folder: Path) -> list[str]:
    """What Redis points to and the folder does not hold."""
    hashes = {
        key.decode().rpartition(":")[2]: {name.decode(): value.decode() for name, value in client.hgetall(key).items()}
        for key in client.keys("*")
        if client.type(key) == b"hash"
    }
    meta, missing = hashes.get("meta", {}), []
    held = {(step, blake3.blake3(path.read_bytes()).hexdigest()) for step, path in batch_files(folder)}
    oldest = min(checkpoints.steps(folder / "checkpoints"), default=0)  # nobody asks for earlier batches
    for step, record in hashes.get("batch", {}).items():
        if int(step) >= oldest and (int(step), json.loads(record)["digest"]) not in held:
            missing.append(f"batch {step}")
    lines = {
        name: [line.get("step") for line in read_json_lines(folder / name).objects]
        for name in ("metrics.jsonl", "samples.jsonl")
    }
    missing += [
        f"{name} of step {step}" for step in hashes.get("commit", {}) for name in lines if int(step) not in lines[name]
    ]
    parts = sorted((folder / "ledger").glob("part-*.parquet"))
    if sum(pq.read_metadata(part).num_rows for part in parts) < int(meta.get("rows_in_files", 0)):
        missing.append("rows of the ledger")
    submitted = int(meta.get("cursor", "0:0").rpartition(":")[2] or 0)
    if len(read_json_lines(folder / "submitted.jsonl").objects) < submitted:
        missing.append("submitted prompts")
    if hashes and not (folder / "run.json").exists():
        missing.append("run.json")
    evaluated = len(json.loads(meta.get("evaluations", "[]")))
    if sum(line.get("kind") == "eval" for line in read_json_lines(folder / "metrics.jsonl").objects) < evaluated:
        missing.append("lines of evaluations")
    if "checkpoint" in meta:
        number = json.loads(meta["checkpoint"])["number"]
        try:
            checkpoints.verify(checkpoints.path_of(folder / "checkpoints", number))
        except ValueError as error:
            missing.append(f"checkpoint {number}: {error}")
    return missing
