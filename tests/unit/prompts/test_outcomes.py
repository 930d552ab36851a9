"""The rows of the ledger that a sampler reads at a start: the newest ones, whichever files they are in."""

from pathlib import Path
from typing import Any

import pytest

from services.coordinator.storage import ledger_writer, outcomes
from services.coordinator.storage.run_files import RunFiles
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA


def row(number: int) -> dict[str, Any]:
    """A group admitted as this number, of the version ten groups made."""
    known = dict.fromkeys(LEDGER_SCHEMA.names)
    return known | {
        "group_id": f"r-{number:07d}",
        "admission": number,
        "oldest_version": number // 10,
        "prompt_row": number,
        "chosen": True,
    }


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """Seven files of thirty rows, or one large file of six of them with row groups of sixty, and one."""
    monkeypatch.setattr(ledger_writer, "ROWS_A_GROUP", 60)
    files = RunFiles(tmp_path)
    for first in range(0, 210, 30):
        rows = [row(number) for number in range(first, first + 30)]
        ledger_writer.write_rows(tmp_path, rows, after=first, most=0)
    return files


@pytest.mark.parametrize("merged", [False, True])
async def test_only_the_newest_rows_are_read_however_long_the_run_was(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    if merged:
        monkeypatch.setattr(ledger_writer, "MERGED_PARTS", 6)
        await files.merge_ledger()
        assert len(list((files.run_dir / "ledger").glob("*.parquet"))) == 2

    async def read(versions_since: int) -> list[int]:
        return [one["prompt_row"] async for some in files.outcomes(versions_since=versions_since) for one in some]

    grain = 60 if merged else 30
    for versions_since in (20, 16, 13, -100, 0):
        first = max(0, 10 * versions_since)
        numbers = await read(versions_since)
        assert numbers == list(range(numbers[0], 210))
        assert first - grain < numbers[0] <= first
    assert await read(99) == []
    async for some in files.outcomes(versions_since=20):
        assert all(set(one) == set(outcomes.COLUMNS) for one in some)
    (files.run_dir / "ledger" / "part-000000000180.parquet").write_bytes(b"damaged")
    assert (await read(17))[-1] == 179, "what can be read is"
