"""The page on a ledger of a million groups: how long a question of the table takes, and until a browser has painted.

The ledger is made: ten files of 100,000 rows in row groups of 5,000, as the coordinator writes them, with two samples and one
attempt a group. A figure is the median of several tries, each of another page or bound. Painting is Chromium's own figure, of
the first content of the view Groups, served by a `sluice ui` of its own; without Chromium it is left out. About a minute.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.report import Row
from sluice.run_dir.ledger_parts import part_path
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from sluice.ui.group_filter import GroupFilter
from sluice.ui.ledger import Ledger
from sluice.ui.prompts import coverage
from tests.needs import chromium

GROUPS, FILE_ROWS, ROWS_A_GROUP = 1_000_000, 100_000, 5_000
TRIES = 5
QUESTION_S, PAINT_S = 0.3, 1.0

QUESTIONS: Mapping[str, tuple[GroupFilter, ...]] = {
    "newest first, any page": tuple(GroupFilter(page=7 * place) for place in range(TRIES)),
    "one verdict": tuple(GroupFilter(term="filtered_all_wrong", page=place) for place in range(TRIES)),
    "share of right answers and length": tuple(
        GroupFilter(acc_low=0.25, tokens_high=40.0 + place) for place in range(TRIES)
    ),
    "one prompt": tuple(GroupFilter(prompt=str(1_000 * place)) for place in range(TRIES)),
    "ordered by length": tuple(GroupFilter(sort="mean_tokens", page=place) for place in range(TRIES)),
}


def run() -> list[Row]:
    """Makes the ledger in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sluice-ui-") as folder:
        run_dir = Path(folder)
        (run_dir / "ledger").mkdir()
        for first in range(0, GROUPS, FILE_ROWS):
            pq.write_table(
                _rows(first), part_path(run_dir, first), row_group_size=ROWS_A_GROUP, write_page_checksum=True
            )
        ledger = Ledger(run_dir)
        ledger.page(GroupFilter())
        rows = [_asked(ledger, what, wanted) for what, wanted in QUESTIONS.items()]
        begun = time.perf_counter()
        assert coverage(ledger).groups == GROUPS
        rows.append(
            Row(what="all prompts by pass rate", value=time.perf_counter() - begun, unit="s", target="", met=True)
        )
        if (browser := chromium()) is not None:
            painted_s = _painted_s(run_dir, browser)
            rows.append(_row("first paint of Groups", painted_s, PAINT_S))
    return rows


def _rows(first: int) -> pa.Table:
    """Rows of every kind of end, with lists that a page must not read."""
    draw = np.random.default_rng(first)
    count = FILE_ROWS
    terms = np.array(["trained", "filtered_all_right", "filtered_all_wrong", "stale"])[draw.integers(0, 4, count)]
    numbers = np.arange(first, first + count)
    steps = np.where(terms == "trained", numbers // 100, -1)
    tokens = draw.integers(8, 400, count)
    columns: dict[str, object] = {
        "group_id": [f"run-{number:07d}" for number in numbers],
        "admission": numbers,
        "prompt_id": [f"{number % 50_000:032x}" for number in numbers],
        "data_source": np.array(["sums", "products"])[draw.integers(0, 2, count)],
        "prompt_epoch": numbers // 50_000,
        "prompt_row": numbers % 50_000,
        "admitted_s": 1.7e9 + numbers,
        "admitted_rank": np.full(count, 3),
        "admitted_next_step": np.maximum(steps, 0),
        "attempt": np.ones(count, dtype=np.int32),
        "term": terms,
        "fault": np.full(count, ""),
        "step": steps,
        "oldest_version": np.maximum(steps - draw.integers(0, 2, count), 0),
        "samples": np.full(count, 2, dtype=np.int32),
        "tokens": tokens,
        "lost_tokens": np.zeros(count, dtype=np.int64),
        "acc_mean": draw.integers(0, 3, count) / 2,
        "ended_s": 1.7e9 + numbers + draw.random(count),
        "attempts": [[{"number": 1, "rollout": f"rollout-{one % 8}", "tokens": int(one)}] for one in tokens],
        "completions": [
            [{"sample": at, "tokens": int(one) // 2, "extracted": str(one)} for at in (0, 1)] for one in tokens
        ],
        "predicted": np.full(count, -1.0),
        "chosen": np.zeros(count, dtype=bool),
        "trace_id": np.full(count, ""),
        **dict.fromkeys(("grading_s", "graded_s", "queued_s", "assigned_s"), 1700000000.0 + numbers),
    }
    return pa.table([pa.array(columns[field.name], type=field.type) for field in LEDGER_SCHEMA], schema=LEDGER_SCHEMA)


def _asked(ledger: Ledger, what: str, wanted: tuple[GroupFilter, ...]) -> Row:
    seconds = []
    for one in wanted:
        begun = time.perf_counter()
        assert ledger.page(one).total > 0
        seconds.append(time.perf_counter() - begun)
    return _row(f"{what}: a page of {GROUPS:,} groups", statistics.median(seconds), QUESTION_S)


def _row(what: str, seconds: float, most: float) -> Row:
    return Row(what=what, value=seconds, unit="s", target=f"< {most:g} s", met=seconds < most)


def _painted_s(run_dir: Path, browser: str) -> float:
    """Median over new pages of one browser, the first one left out."""
    from playwright.sync_api import sync_playwright

    with _served(run_dir) as address, sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        seconds = []
        for _ in range(TRIES + 1):
            page = chrome.new_page()
            page.goto(f"{address}groups")
            page.wait_for_selector(".top")
            told = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
            seconds.append(float(page.evaluate(told)) / 1000)
            page.close()
        chrome.close()
    return statistics.median(seconds[1:])


@contextmanager
def _served(run_dir: Path) -> Iterator[str]:
    """A `sluice ui` of its own, and its address."""
    command = [sys.executable, "-m", "sluice.cli.main", "ui", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
