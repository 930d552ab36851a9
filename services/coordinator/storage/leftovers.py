"""What killed coordinators leave in the run directory; the next one removes it when it has taken over the run.

RUN/batches/*.staged    a batch that was written and never assigned; one that was assigned gets its name when it is asked for
RUN/batches/step-*      batches before the oldest checkpoint, when the kill came between a checkpoint and their removal
*.partial               a file that was cut off before it got its name
A batch file without a record in Redis stays: the file may be all that is left of the batch (recovery/repair.py).
"""

import asyncio
from pathlib import Path

import structlog

from services.coordinator.state.ports import DurableState
from services.coordinator.storage.run_files import RunFiles
from sluice.run_dir.batch_file import batch_files

log = structlog.get_logger(__name__)

FOLDERS = (".", "batches", "ledger")
"""Where a coordinator writes. Checkpoints are the learner's, logs the launcher's."""


async def drop_leftovers(store: DurableState, files: RunFiles) -> None:
    """Removes the leftovers. A file that cannot be removed is named in the log."""
    staged = [(step, path) for step, path in list(batch_files(files.run_dir)) if path.suffix == ".staged"]
    left = [path for step, path in staged if not await _is_assigned(store, step, path)]
    await asyncio.to_thread(_remove, files, left)


async def _is_assigned(store: DurableState, step: int, path: Path) -> bool:
    record = await store.record("batch", step)
    return record is not None and path.name.endswith(f".{record['digest'][:16]}.staged")


def _remove(files: RunFiles, left: list[Path]) -> None:
    left = left + [path for folder in FOLDERS for path in (files.run_dir / folder).glob("*.partial")]
    try:
        for path in left:
            path.unlink(missing_ok=True)
        if kept := files.kept_checkpoints():
            files.drop_batches_before(kept[0])
    except OSError as error:
        log.warning("leftovers_not_removed", reason=str(error))
    else:
        if left:
            log.info("leftovers_removed", files=len(left))
