"""Moves the rows of ended groups from Redis into Parquet files; each row is in exactly one file, after any kill."""

import asyncio

import pyarrow as pa
import structlog

from services.coordinator.state.ports import DurableState
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import NotReady

log = structlog.get_logger(__name__)

ROWS_A_FILE = 5_000


class LedgerFiles:
    """The files of RUN/ledger, written one flush at a time."""

    def __init__(self, *, store: DurableState, files: RunFiles) -> None:
        self._store, self._files = store, files
        self._one_at_a_time = asyncio.Lock()
        self._merging = True
        self._written = store.rows_written

    @property
    def is_due(self) -> bool:
        """Whether enough rows for a file came since the last flush: steps may be long, and every filtered group is a row."""
        return self._store.rows_written - self._written >= ROWS_A_FILE and not self._one_at_a_time.locked()

    async def flush(self) -> None:
        """Writes every row in Redis to a file, then removes these rows from Redis.

        A file is named after the number of rows in earlier files: after a kill in between, the same rows are written to the
        same place again.
        """
        async with self._one_at_a_time:
            await self._flush()

    async def trained_since(self, step: int) -> tuple[int, int]:
        """Groups and tokens trained in steps from `step` on, counted in the files after a flush of all rows.

        Raises NotReady when Redis has forgotten a part of the run.
        """
        async with self._one_at_a_time:  # a live run moves rows at any moment
            await self._flush()
            rows, groups, tokens = await self._files.count_trained(since=step)
            in_files = await self._store.rows_in_files()
        if rows != in_files:
            raise NotReady(
                f"rollback: Redis knows of {in_files} rows in the ledger's files, there are {rows}: it has forgotten a part "
                "of the run. Start the run, which repairs that, then roll back"
            )
        return groups, tokens

    async def _merge(self) -> None:
        """A file that cannot be merged costs files, not the run; the next coordinator tries again."""
        if self._merging:
            try:
                await self._files.merge_ledger()
            except (pa.ArrowException, OSError) as error:
                log.warning("ledger_not_merged", reason=str(error))
                self._merging = False

    async def _flush(self) -> None:
        self._written = self._store.rows_written
        while True:
            before, rows = await self._store.rows(ROWS_A_FILE)
            if not rows or await self._files.ledger_rows() > before + len(rows):
                return  # Redis forgot rows that are in files; repair.py books them when the learner registers
            await self._files.write_ledger(rows, after=before, most=ROWS_A_FILE)
            await self._store.drop_rows(before, len(rows))
            await self._merge()
