"""Many small files of the ledger become few large ones; whoever reads meanwhile, or is killed, finds each row once."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.coordinator.recovery.ended_groups import EndedGroups
from services.coordinator.storage import ledger_writer
from services.coordinator.storage.ledger_files import LedgerFiles
from services.coordinator.storage.ledger_writer import count_trained, ledger_rows, mark_rolled_back, merge, write_rows
from services.coordinator.storage.run_files import RunFiles
from sluice.report.ledger_tables import find_row, select
from sluice.run_dir.ledger_parts import open_parts, part_paths
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA

PART, MERGED = 5, 40


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_writer, "MERGED_PARTS", 4)
    monkeypatch.setattr(ledger_writer, "MERGED_ROWS", MERGED)
    monkeypatch.setattr(ledger_writer, "ROWS_A_GROUP", PART)


def row(number: int) -> dict[str, Any]:
    attempt = {"number": 1, "rollout": "r", "tokens": 3}
    return {
        "group_id": f"run-{number:07d}",
        "admission": number,
        "term": "trained" if number % 2 else "filtered_all_right",
        "step": number // 4 if number % 2 else -1,
        "tokens": 3,
        "attempts": [attempt],
    }


def write(run_dir: Path, first: int, count: int) -> None:
    write_rows(run_dir, [row(number) for number in range(first, first + count)], after=first, most=PART)


def ids(run_dir: Path) -> list[int]:
    return [int(name[4:]) for part in open_parts(run_dir) for batch in part.batches(["group_id"]) for name in of(batch)]


def of(batch: pa.RecordBatch) -> list[str]:
    return batch.column(0).to_pylist()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "ledger").mkdir()
    return tmp_path


def test_a_run_has_few_files_however_many_groups_it_had(run_dir: Path) -> None:
    numbers, chance = 0, random.Random(0)
    most = 0
    while numbers < 160:
        count = chance.randint(1, PART)
        write(run_dir, numbers, count)
        merge(run_dir)
        numbers += count
        most = max(most, len(part_paths(run_dir)) - numbers // (MERGED - 2 * PART))
    assert ids(run_dir) == list(range(numbers))
    assert ledger_rows(run_dir) == numbers
    assert most <= 6
    assert all(pq.read_schema(path).equals(LEDGER_SCHEMA) for path in part_paths(run_dir))
    assert select(run_dir, "SELECT count(*), count(DISTINCT group_id) FROM attempts")[1] == [(numbers, numbers)]


def test_every_row_is_found_by_id_and_by_number_and_a_rollback_marks_each_once(run_dir: Path) -> None:
    for first in range(0, 60, PART):
        write(run_dir, first, PART)
        merge(run_dir)
    for number in (0, 17, 39, 40, 59):
        assert find_row(run_dir, f"run-{number:07d}") == find_row(run_dir, str(number))
        assert (find_row(run_dir, str(number)) or {})["admission"] == number
    assert find_row(run_dir, "60") is find_row(run_dir, "run-9") is None
    given_up = [number for number in range(60) if number % 2 and number // 4 >= 7]
    assert count_trained(run_dir, since=7) == (60, len(given_up), 3 * len(given_up))
    mark_rolled_back(run_dir, since=7, fault="back")
    assert count_trained(run_dir, since=7) == (60, 0, 0)
    assert count_trained(run_dir, since=0) == (60, 30 - len(given_up), 3 * (30 - len(given_up)))
    marked = select(
        run_dir, "SELECT admission FROM groups WHERE term = 'rollback' AND fault = 'back' ORDER BY admission"
    )
    assert [number for (number,) in marked[1]] == given_up


@pytest.mark.parametrize("killed_at", range(4))
def test_a_merge_that_a_kill_broke_off_is_ended_by_the_next_one(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    for first in range(0, 5 * PART, PART):
        write(run_dir, first, PART)
    unlinked: list[Path] = []
    unlink = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if len(unlinked) == killed_at:
            raise InterruptedError
        unlinked.append(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    if killed_at < 3:
        with pytest.raises(InterruptedError):
            merge(run_dir)
    else:
        merge(run_dir)
    assert ids(run_dir) == list(range(5 * PART))
    assert find_row(run_dir, "7") is not None
    assert select(run_dir, "SELECT count(*) FROM groups")[1] == [(5 * PART,)]
    monkeypatch.undo()
    write(run_dir, 5 * PART, PART)
    merge(run_dir)
    assert ids(run_dir) == list(range(6 * PART))
    assert sum(pq.read_metadata(path).num_rows for path in part_paths(run_dir)) == 6 * PART


def test_a_reader_that_is_overtaken_by_a_merge_finds_every_row_once(run_dir: Path) -> None:
    for first in range(0, 8 * PART, PART):
        write(run_dir, first, PART)
    found = []
    for part in open_parts(run_dir):
        found += [name for batch in part.batches(["group_id"]) for name in of(batch)]
        if len(found) == 2 * PART:
            merge(run_dir)
            assert len(part_paths(run_dir)) < 4
    assert [int(name[4:]) for name in found] == list(range(8 * PART))


def test_rows_that_are_known_are_left_out(run_dir: Path) -> None:
    for first in range(0, 6 * PART, PART):
        write(run_dir, first, PART)
    merge(run_dir)

    async def after(known: int) -> list[int]:
        return [row["admission"] async for rows in RunFiles(run_dir).ended_groups(after=known) for row in rows]

    for known in (0, 3, PART, 2 * PART + 1, 6 * PART):
        assert asyncio.run(after(known)) == list(range(known, 6 * PART))


def test_a_name_that_leads_nowhere_does_not_hold_a_reader_up(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run_dir, 0, PART)
    (run_dir / "ledger" / f"part-{PART:012d}.parquet").symlink_to(run_dir / "nowhere")
    assert ids(run_dir) == list(range(PART))
    assert "cannot be read" in capsys.readouterr().err


class NoMoreRows:
    """A store from which some rows are moved."""

    def __init__(self) -> None:
        self.rows_written, self.before = 0, 0

    async def rows(self, limit: int) -> tuple[int, list[dict[str, Any]]]:
        return self.before, [row(number) for number in range(self.before, min(self.before + 3, 60))]

    async def drop_rows(self, before: int, count: int) -> None:
        self.before = before + count


def test_a_damaged_file_costs_merging_and_not_the_run(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.coordinator.storage.ledger_files.ROWS_A_FILE", PART)
    write(run_dir, 0, 3)
    path = part_paths(run_dir)[0]
    body = bytearray(path.read_bytes())
    body[40] ^= 0xFF  # a page, not the footer
    path.write_bytes(bytes(body))
    store = NoMoreRows()
    store.before = 3
    asyncio.run(LedgerFiles(store=store, files=RunFiles(run_dir)).flush())  # type: ignore[arg-type]
    assert store.before == 60
    assert path.read_bytes() == bytes(body)


def test_ended_groups_are_known_by_number_and_step_in_little_memory() -> None:
    ended = EndedGroups("run")
    assert "run-0000000" not in ended
    ended.add(row(number) for number in range(0, 100, 2))
    ended.add([row(1_000_001), row(1_000_003)])
    assert "run-0000098" in ended
    assert "run-1000001" in ended
    assert not any(name in ended for name in ("run-0000099", "run-1000002", "run-2000000", "other-0000098", "run-98"))
    assert (ended.newest, ended.trained_in(250_000), ended.trained_in(24)) == (1_000_003, True, False)
    assert ended._groups._bits.nbytes < 200_000
