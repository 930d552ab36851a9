"""A disk without room for a checkpoint costs that checkpoint and nothing else; the model at the end waits for room.

Needs the right to mount a tmpfs.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.learner.checkpoint import folders
from services.learner.checkpoint import training_state as checkpoint
from sluice.errors import DiskFull
from sluice.testing.fakes import FakeCoordinator, serving
from sluice.v1 import coordinator_pb2 as pb
from tests.forked import ForkedProcess
from tests.integration.service_process import exit_code, learner
from tests.integration.tiny_run import tiny_coordinator
from tests.small_disk import disk_of, fill

pytestmark = [pytest.mark.integration, pytest.mark.needs("tmpfs"), pytest.mark.timeout(180)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MiB."""
    with disk_of(tmp_path / "run" / "checkpoints", size_bytes=4 << 20) as folder:
        yield folder


async def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_and_the_next_save_works_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    settings = {"mini_batch_size": 3, "checkpoint_every_steps": 1, "keep_checkpoints": 1, "lr": 1e-2}
    fake = tiny_coordinator(tmp_path, run_dir=small_disk.parent, ready=1, learner=settings)
    async with serving(fake) as address, learner(address, "--log-format", "json", piped=True) as process:
        await fake.until(lambda: len(fake.checkpoints) == 1)
        written = sum(path.stat().st_size for path in (small_disk / "step-1").iterdir())

        _leave_free(small_disk, 20_000)
        await fake.allow(ready=2)
        refused = await _logged(process, "checkpoint_failed")
        assert (refused["step"], "needs about" in refused["reason"]) == (2, True)

        _leave_free(small_disk, written * 3 // 4)  # enough for the tensors, not for what is written around them
        await fake.allow(ready=3)
        broken_off = await _logged(process, "checkpoint_failed")
        assert (broken_off["step"], "No space left on device" in broken_off["reason"]) == (3, True)
        assert folders.newest_that_verifies(small_disk) == small_disk / "step-1"

        (small_disk / "filler").unlink()
        await fake.allow(ready=4, end=4)
        await fake.until(lambda: len(fake.checkpoints) == 2)
        assert await exit_code(process) == 0
    assert os.listdir(small_disk) == ["step-4"]
    assert [batch.step for batch in checkpoint.read_state(small_disk / "step-4").trained] == [1, 2, 3]
    assert (small_disk.parent / "model" / "model.safetensors").exists()


async def test_a_learner_waits_while_its_coordinator_has_no_room_and_for_room_for_the_model(tmp_path: Path) -> None:
    settings = {"mini_batch_size": 3, "checkpoint_every_steps": 100, "lr": 1e-2}
    with disk_of(tmp_path / "run", size_bytes=4 << 20) as run_dir:
        fake = tiny_coordinator(tmp_path, run_dir=run_dir, ready=1, learner=settings)
        refusing = CommitsLater(fake, refusals=2)
        async with serving(fake) as address, learner(address) as process:
            await fake.until(lambda: len(fake.commits) == 1)
            assert refusing.left == 0
            ballast = fill(run_dir)
            await fake.allow(end=1)
            await fake.until(lambda: bool(fake.beats[-1].waits_for))
            assert f"the disk under {run_dir} is full" in fake.beats[-1].waits_for
            ballast.unlink()
            assert await exit_code(process) == 0
        assert (run_dir / "model" / "model.safetensors").exists()
        assert fake.beats[-1].waits_for == ""


class CommitsLater:
    """Has a fake coordinator answer the first commits as one does whose disk is full."""

    def __init__(self, fake: FakeCoordinator, *, refusals: int) -> None:
        self.left, self._commit = refusals, fake.CommitStep
        fake.CommitStep = self.CommitStep  # type: ignore[method-assign]

    async def CommitStep(self, request: pb.CommitStepRequest, context: Any) -> pb.CommitStepResponse:
        if self.left:
            self.left -= 1
            raise DiskFull("the disk under RUN is full")
        return await self._commit(request, context)


def _leave_free(disk: Path, free_bytes: int) -> None:
    """Fills the disk up to that."""
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    facts = os.statvfs(disk)
    filler.write_bytes(bytes(max(0, facts.f_bavail * facts.f_frsize - free_bytes)))


async def _logged(process: ForkedProcess, event: str) -> dict[str, str]:
    """The next log line of that event."""
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            found = json.loads(line) if line.startswith(b"{") else {}
            if found.get("event") == event:
                return found
    raise AssertionError(f"the learner ended without logging {event}")
