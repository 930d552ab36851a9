"""Moves the rows of ended groups from Redis into Parquet files; each row is in exactly one file, after any kill."""

import asyncio
from typing import Any

from services.coordinator.state.ports import DurableState
from services.coordinator.storage.run_files import RunFiles

ROWS_A_FILE = 5_000


class LedgerFiles:
    """The files of RUN/ledger, written one flush at a time."""

    def __init__(self, *, store: DurableState, files: RunFiles) -> None:
        self._store, self._files = store, files
        self._one_at_a_time = asyncio.Lock()
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

    async def flushed(self) -> tuple[list[dict[str, Any]], int]:
        """Every row in the files after a flush, and Redis's count of rows in files, which is smaller if Redis forgot some."""
        async with self._one_at_a_time:  # a live run moves rows at any moment
            await self._flush()
            rows = [row for part in await self._files.ledger_parts(after=0) for row in part]
            return rows, await self._store.rows_in_files()

    async def _flush(self) -> None:
        self._written = self._store.rows_written
        while True:
            before, rows = await self._store.rows(ROWS_A_FILE)
            if not rows or await self._files.ledger_rows() > before + len(rows):
                return  # Redis forgot rows that are in files; repair.py books them when the learner registers
            await self._files.write_ledger(rows, after=before, most=ROWS_A_FILE)
            await self._store.drop_rows(before, len(rows))
