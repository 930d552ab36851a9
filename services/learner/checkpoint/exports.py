"""Hugging Face folders of a run's versions, written while training goes on: `RUN/exports/step-K`.

An export reads the published snapshot, which never changes: no copy and no collective. An export waits until the former
export has ended, so that exports hold at most two snapshots. A failed export is logged and the run goes on.
"""

from concurrent.futures import Future, wait
from pathlib import Path

import structlog

from services.learner.checkpoint.background import in_background
from services.learner.checkpoint.export import export_version
from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.weights.snapshot import Snapshot

log = structlog.get_logger(__name__)

WAIT_LIMIT_S = 300.0
"""How long training waits for the former export before it skips one; below the limit of a collective of the ranks."""


class BackgroundExports:
    """Exports a version every `learner.export_every_steps` steps; with 0 exports nothing."""

    def __init__(self, *, config: Config, directory: Path) -> None:
        self._config, self._directory = config, directory
        self._under_way: Future[None] | None = None

    def offer(self, snapshot: Snapshot) -> None:
        """Begins the export of this version if the version is due."""
        number = snapshot.manifest.version.number
        every = self._config.learner.export_every_steps
        if every == 0 or number % every:
            return
        if not self._idle():
            log.warning("export_skipped", step=number, reason=f"the former one still ran after {WAIT_LIMIT_S:.0f} s")
            return
        self._under_way = in_background("export", self._export, snapshot)

    def close(self) -> None:
        """Waits until the export under way has ended, at most WAIT_LIMIT_S."""
        if not self._idle():
            log.warning("export_abandoned", reason=f"it still ran after {WAIT_LIMIT_S:.0f} s")

    def _idle(self) -> bool:
        """Waits for the export under way; False when the export did not end. Raises the export's unexpected errors."""
        if self._under_way is None:
            return True
        if not wait([self._under_way], timeout=WAIT_LIMIT_S).done:
            return False
        self._under_way.result()
        self._under_way = None
        return True

    def _export(self, snapshot: Snapshot) -> None:
        version = snapshot.manifest.version
        target = self._directory / f"step-{version.number}"
        try:
            export_version(snapshot, config=self._config, target=target)
        except SluiceError as error:
            log.error("export_failed", step=version.number, reason=str(error))
        else:
            log.info("exported", path=str(target), version=str(version))
