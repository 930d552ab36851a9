"""What a killed coordinator left is gone after the next start, and nothing that anybody may still ask for."""

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.coordinator.storage.leftovers import drop_leftovers
from services.coordinator.storage.run_files import RunFiles


class Records:
    """The batches that Redis knows."""

    def __init__(self, **digests: str) -> None:
        self._digests = digests

    async def record(self, kind: str, step: int) -> dict[str, Any] | None:
        digest = self._digests.get(f"{kind}{step}")
        return None if digest is None else {"digest": digest}


async def test_staged_files_go_unless_they_are_the_batch_that_redis_knows(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assigned = await files.stage_batch(3, payloads=[b"assigned"])
    await files.stage_batch(3, payloads=[b"another"])
    await files.stage_batch(4, payloads=[b"never assigned"])
    await drop_leftovers(Records(batch3=assigned.digest), files)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "batches").iterdir()] == [f"step-000003.{assigned.digest[:16]}.staged"]
    await files.name_batch(3, assigned.digest)
    assert (await files.read_batch(3)).payloads == [b"assigned"]


async def test_batches_before_the_oldest_checkpoint_and_half_written_files_go_and_others_stay(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for step in range(6):
        await files.name_batch(step, (await files.stage_batch(step, payloads=[b"g"])).digest)
    (tmp_path / "checkpoints" / "step-4").mkdir(parents=True)
    halves = [
        "batches/step-000009.aa.staged.partial",
        "ledger/part-000000000000.parquet.partial",
        "metrics.jsonl.partial",
    ]
    others = ["checkpoints/step-4/x.partial", "logs/rollout-0.log.1.partial", "ledger/part-000000000000.parquet"]
    for name in (*halves, *others):
        (tmp_path / name).write_text("half")
    poison = await files.keep_poison(5, "f" * 64)
    await drop_leftovers(Records(), files)  # type: ignore[arg-type]
    left = sorted(path.name for path in (tmp_path / "batches").iterdir())
    assert left == [poison.name, "step-000004.groups", "step-000005.groups"]
    assert not any((tmp_path / name).exists() for name in halves)
    assert all((tmp_path / name).exists() for name in others)


async def test_a_file_that_cannot_be_removed_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(tmp_path)
    await files.stage_batch(1, payloads=[b"g"])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    with capture_logs() as logs:
        await drop_leftovers(Records(), files)  # type: ignore[arg-type]
    assert [(line["event"], line["reason"]) for line in logs] == [("leftovers_not_removed", "read-only")]
