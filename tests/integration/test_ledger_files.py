"""The ledger's files and Redis, which agree on how many rows are in files at every moment at which somebody may look."""

import asyncio
from pathlib import Path

import pytest

from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.redis_store import Store
from services.coordinator.storage.run_files import RunFiles

pytestmark = pytest.mark.integration


async def end(store: Store, number: int) -> None:
    """A group is admitted and ends, which leaves a row."""
    name = f"g{number}"
    await store.admit({name: {"admission": number}}, cursor="", admissions=number + 1)
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
    read, meanwhile = files.count_trained, []

    async def read_while_the_run_goes_on(*, since: int) -> tuple[int, int, int]:
        counted = await read(since=since)
        await end(store, 1)
        meanwhile.append(asyncio.create_task(ledger.flush()))
        await asyncio.wait(meanwhile, timeout=0.2)
        return counted

    monkeypatch.setattr(files, "count_trained", read_while_the_run_goes_on)
    assert await ledger.trained_since(0) == (0, 0)
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
    await ledger.flush()
    rows = [row async for some in files.ended_groups(after=0) for row in some]
    assert [row["group_id"] for row in rows] == [f"g{number}" for number in range(25)]
    assert await store.rows_in_files() == await files.ledger_rows() == 25
    assert [path.name[5:17].lstrip("0") for path in sorted((tmp_path / "ledger").iterdir())] == ["", "9", "18"]
    assert [len(some) async for some in files.ended_groups(after=11)] == [7, 7]


async def _killed(before: int, count: int) -> None:
    raise InterruptedError
