"""The ledger's files and Redis, which agree on how many rows are in files at every moment at which somebody may look."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles

pytestmark = pytest.mark.integration


async def end(store: Store, number: int) -> None:
    """A group is admitted and ends, which leaves a row."""
    name = f"g{number}"
    await store.admit(name, info={"admission": number}, cursor="", admissions=number + 1)
    row = {
        "group_id": name,
        "admission": number,
        "term": "failed:reward_error",
        "step": -1,
        "tokens": 0,
        "lost_tokens": 6,
    }
    await store.end(name, was="open", term="failed:reward_error", row=row, tokens=0, lost=6)


async def test_rows_that_are_moved_while_somebody_reads_are_not_taken_for_forgotten(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(tmp_path)
    ledger = LedgerFiles(store=store, files=files)
    await end(store, 0)
    read, meanwhile = files.ledger_parts, []

    async def read_while_the_run_goes_on(*, after: int) -> list[list[dict[str, Any]]]:
        parts = await read(after=after)
        await end(store, 1)
        meanwhile.append(asyncio.create_task(ledger.flush()))
        await asyncio.wait(meanwhile, timeout=0.2)
        return parts

    monkeypatch.setattr(files, "ledger_parts", read_while_the_run_goes_on)
    rows, in_files = await ledger.flushed()
    assert (len(rows), in_files) == (1, 1)
    await asyncio.gather(*meanwhile)
    assert await store.rows(10) == (2, [])


async def test_small_flushes_fill_one_file_after_the_other_and_a_repeated_one_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.coordinator.storage.ledger_files.ROWS_A_FILE", 10)
    files = RunFiles(tmp_path)
    ledger = LedgerFiles(store=store, files=files)
    for number in range(25):
        await end(store, number)
        if number % 3 == 2:
            monkeypatch.setattr(store, "drop_rows", _killed)
            with pytest.raises(InterruptedError):
                await ledger.flush()
            monkeypatch.undo()
            monkeypatch.setattr("services.coordinator.storage.ledger_files.ROWS_A_FILE", 10)
            await ledger.flush()
    rows, in_files = await ledger.flushed()
    assert [row["group_id"] for row in rows] == [f"g{number}" for number in range(25)]
    assert in_files == 25
    assert [path.name[5:17].lstrip("0") for path in sorted((tmp_path / "ledger").iterdir())] == ["", "9", "18"]
    assert [len(part) for part in await files.ledger_parts(after=11)] == [7, 7]


async def _killed(before: int, count: int) -> None:
    raise InterruptedError
