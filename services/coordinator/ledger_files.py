"""Moves the rows of ended groups from Redis into Parquet files: each row is in exactly one file, whenever it is killed."""

import asyncio

from services.coordinator.ports import DurableState
from services.coordinator.run_files import RunFiles

ROWS_A_FILE = 5_000


class LedgerFiles:
    """RUN/ledger, one flush at a time."""

    def __init__(self, *, store: DurableState, files: RunFiles) -> None:
        self._store, self._files = store, files
        self._one_at_a_time = asyncio.Lock()

    async def flush(self) -> None:
        """Writes every row there is, then forgets it in Redis.

        A file is named after the rows in files before it: one that was written, but not forgotten, is written again
        under the same name.
        """
        async with self._one_at_a_time:
            while True:
                before, rows = await self._store.rows(ROWS_A_FILE)
                part = f"{before:012d}"
                if not rows or await self._files.ledger_rows(part) > len(rows):
                    return  # Redis forgot rows that this file has: they are booked when the learner is here (repair.py)
                await self._files.write_ledger(rows, part=part)
                await self._store.drop_rows(before, len(rows))
