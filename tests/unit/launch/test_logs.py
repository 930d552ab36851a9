"""Logs of processes that write for a year: small, and still read from the end."""

import asyncio
from pathlib import Path

import pytest

from sluice.launch.log_sizes import keep_small, turn_over
from sluice.process.output import tail
from sluice.testing import ManualClock, assert_eventually


def test_a_log_that_has_grown_is_emptied_under_the_process_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "rollout-0.log"
    with path.open("ab", buffering=0) as held:
        held.write(b"old\n" * 300)
        turn_over(path, most_bytes=1000)
        held.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "rollout-0.log.1").read_bytes() == b"old\n" * 300


def test_a_second_turn_leaves_two_files_and_a_small_log_none(tmp_path: Path) -> None:
    path = tmp_path / "reward-0.log"
    for text in (b"first\n", b"second\n"):
        path.write_bytes(path.read_bytes() + text * 300 if path.exists() else text * 300)
        turn_over(path, most_bytes=1000)
    path.write_bytes(b"small\n")
    turn_over(path, most_bytes=1000)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["reward-0.log", "reward-0.log.1"]
    assert (tmp_path / "reward-0.log.1").read_bytes() == b"second\n" * 300
    assert path.read_bytes() == b"small\n"


def test_the_end_of_a_log_is_found_over_a_turn_and_without_reading_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "learner.log"
    assert tail(path) == ""
    path.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert tail(path, 2) == "line 99998\nline 99999"
    turn_over(path, most_bytes=1000)
    with path.open("a") as log:
        log.write("dies\n")
    assert tail(path, 3) == "line 99998\nline 99999\ndies"


async def test_logs_are_looked_at_as_long_as_the_run_lasts_and_a_fault_costs_only_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock()
    work = asyncio.create_task(keep_small(tmp_path, most_bytes=100, clock=clock))
    (tmp_path / "a.log").write_text("x" * 101)
    (tmp_path / "a.log.1").mkdir()  # in the way
    (tmp_path / "b.log").write_text("x" * 101)
    try:
        await assert_eventually(lambda: not (tmp_path / "b.log").read_text())
        (tmp_path / "b.log").write_text("y" * 101)
        await clock.advance(30.0)
        await assert_eventually(lambda: (tmp_path / "b.log.1").read_text() == "y" * 101)
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert (tmp_path / "a.log").read_text() == "x" * 101
    assert "a.log has outgrown run.file_max_bytes" in capsys.readouterr().err
