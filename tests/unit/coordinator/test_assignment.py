"""Which groups make up a batch, and that nothing is lost when the learner hangs up in the middle."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from services.coordinator.groups.assignment import Assigner
from services.coordinator.state.ledger import count
from services.coordinator.state.member import Role
from services.coordinator.storage.run_files import BatchFile, RunFiles
from sluice.errors import DataError, Fenced
from sluice.testing import assert_eventually
from tests.unit.coordinator.fakes import Stage, make_config


class Scene:
    """A conductor that has filled the queue, and the assigner over it."""

    def __init__(self, tmp_path: Path) -> None:
        self.stage = Stage(make_config())
        self.files = RunFiles(tmp_path)
        self.assigner = Assigner(self.stage.run, self.stage.records(self.files))

    async def fill(self) -> None:
        """Eight accepted groups."""
        self.stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
        conducting = asyncio.create_task(self.stage.conductor.run())
        await assert_eventually(lambda: len(self.stage.board.queued) == 8)
        conducting.cancel()
        await asyncio.gather(conducting, return_exceptions=True)

    @property
    def closed(self) -> bool:
        return count(self.stage.store.counters, self.stage.board).closed


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    await made.fill()
    return made


async def test_the_first_groups_in_admission_order_make_up_the_batch(scene: Scene) -> None:
    batch = await scene.assigner.batch(0, wait_s=0)
    assert isinstance(batch, BatchFile)
    assert [payload.decode() for payload in batch.payloads] == [f"r-{i:07d}" for i in range(4)]
    assert await scene.assigner.batch(0, wait_s=0) == batch
    assert scene.stage.board.next_step == 1


async def test_a_batch_file_that_was_changed_is_not_handed_out_but_set_aside_for_another(scene: Scene) -> None:
    await scene.assigner.batch(0, wait_s=0)
    path = scene.files.run_dir / "batches" / "step-000000.groups"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    batch = await scene.assigner.batch(0, wait_s=0)
    assert isinstance(batch, BatchFile)
    assert [payload.decode() for payload in batch.payloads] == [f"r-{i:07d}" for i in range(4, 8)]
    faults = [row["fault"] for row in scene.stage.store.rows_ if row["term"] == "failed:poison"]
    assert len(faults) == 4
    assert all("is not what was assigned" in fault for fault in faults)
    assert scene.closed


async def test_a_batch_file_that_was_changed_after_its_commit_is_not_handed_out(scene: Scene) -> None:
    await scene.assigner.batch(0, wait_s=0)
    del scene.assigner.assigned[0]  # as its commit does
    path = scene.files.run_dir / "batches" / "step-000000.groups"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="not what was assigned"):
        await scene.assigner.batch(0, wait_s=0)


async def test_a_coordinator_that_was_replaced_does_not_overwrite_the_batch_of_its_successor(scene: Scene) -> None:
    handed_out = await scene.files.stage_batch(0, payloads=[b"of the successor"])
    await scene.files.name_batch(0, handed_out.digest)
    scene.stage.store.fenced = True
    with pytest.raises(Fenced):
        await scene.assigner.batch(0, wait_s=0)
    assert (await scene.files.read_batch(0)).payloads == [b"of the successor"]


async def test_a_batch_whose_coordinator_died_before_its_file_had_its_name_is_handed_out(scene: Scene) -> None:
    batch = await scene.assigner.batch(0, wait_s=0)
    assert isinstance(batch, BatchFile)
    (scene.files.run_dir / "batches" / "step-000000.groups").unlink()
    await scene.files.stage_batch(0, payloads=[b"of a choice that was never recorded"])
    await scene.files.stage_batch(0, payloads=batch.payloads)
    assert await scene.assigner.batch(0, wait_s=0) == batch
    scene.files.drop_batches_before(1)
    assert list((scene.files.run_dir / "batches").iterdir()) == []


async def test_a_learner_that_hangs_up_while_its_batch_is_recorded_gets_it_when_it_is_back(scene: Scene) -> None:
    scene.stage.store.answers.clear()
    asking = asyncio.create_task(scene.assigner.batch(0, wait_s=0))
    await assert_eventually(lambda: 0 in scene.stage.store.batches)
    asking.cancel()
    await asyncio.sleep(0)
    scene.stage.store.answers.set()
    await asyncio.gather(asking, return_exceptions=True)
    assert list(scene.assigner.assigned) == [0]
    assert (len(scene.stage.board.queued), scene.stage.board.next_step) == (4, 1)
    assert isinstance(await scene.assigner.batch(0, wait_s=0), BatchFile)
    assert scene.closed


async def test_nothing_is_assigned_once_the_books_are_closed(scene: Scene) -> None:
    first = await scene.assigner.batch(0, wait_s=0)
    await scene.assigner.close()
    assert await scene.assigner.batch(1, wait_s=5) == "the run is being stopped"
    assert await scene.assigner.batch(0, wait_s=0) == first
    await scene.assigner.abandon_queued()
    assert scene.stage.store.counters["abandoned"] == 4
    assert scene.closed


async def test_a_learner_that_asks_ahead_of_its_commit_gets_no_further_batch_of_a_run_that_is_being_stopped(
    scene: Scene,
) -> None:
    first = await scene.assigner.batch(0, wait_s=0)
    scene.stage.run.progress.stop_requested = True
    assert await scene.assigner.batch(1, wait_s=5) == "the run is being stopped"
    assert await scene.assigner.batch(0, wait_s=0) == first


async def test_closing_ends_a_wait_for_groups_that_will_not_come(scene: Scene) -> None:
    scene.stage.board.gen_batch_size = 0
    for step in range(2):
        await scene.assigner.batch(step, wait_s=0)
    waiting = asyncio.create_task(scene.assigner.batch(2, wait_s=30))
    await asyncio.sleep(0.01)
    await scene.assigner.close()
    assert await waiting == "the run is being stopped"


async def cancelled_while(scene: Scene, change: Callable[[], bool]) -> None:
    """Runs the conductor into a Redis that does not answer, and cancels it there."""
    scene.stage.store.answers.clear()
    conducting = asyncio.create_task(scene.stage.conductor.run())
    await assert_eventually(change)
    conducting.cancel()
    await asyncio.sleep(0)
    scene.stage.store.answers.set()
    await asyncio.gather(conducting, return_exceptions=True)


async def test_a_group_that_is_being_accepted_when_the_run_stops_is_queued_on_both_sides(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.stage.add_member(Role.ROLLOUT, "rollout-0", version=0)
    await cancelled_while(scene, lambda: scene.stage.store.counters["queued"] >= 1)
    assert scene.stage.store.counters["queued"] == len(scene.stage.board.queued)
    await scene.stage.conductor.abandon_all()
    assert scene.stage.store.counters["open"] == 0
    assert scene.closed
