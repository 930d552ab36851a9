"""What a rollback sets aside, and that all of it may be done again."""

from pathlib import Path

from services.coordinator.recovery import rollback_files
from services.coordinator.storage.run_files import RunFiles
from sluice.run_dir.batch_file import batch_path


async def test_batches_are_set_aside_from_the_step_on_with_what_was_staged_of_them(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for step in (1, 2, 3):
        staged = await files.stage_batch(step, payloads=[b"group"])
        await files.name_batch(step, staged.digest)
    await files.stage_batch(3, payloads=[b"another"])
    for _ in range(2):
        rollback_files.give_up(tmp_path, number=1, to=2)
    batches = tmp_path / "batches"
    assert [path.name for path in batches.glob("step-*")] == [batch_path(tmp_path, 1).name]
    aside = sorted(path.name for path in (batches / "rolled-back-1").iterdir())
    assert [name.split(".")[0] for name in aside] == ["step-000002", "step-000003", "step-000003"]
    rollback_files.drop_set_aside(tmp_path, 1)
    assert [path.name for path in batches.iterdir()] == ["step-000001.groups"]
