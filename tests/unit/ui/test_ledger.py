"""The table of groups: every filter against the same question asked of the rows in Python, and damaged files."""

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from services.coordinator.storage.ledger_writer import write_rows
from sluice.errors import NotReady
from sluice.run_dir.ledger_parts import part_path
from sluice.ui.group_filter import PAGE_ROWS, SORTABLE, GroupFilter, group_filter, requested
from sluice.ui.ledger import Ledger
from sluice.ui.prompts import coverage, prompts

TERMS = ("trained", "filtered_all_right", "filtered_all_wrong", "failed:reward_timeout", "stale")
COUNT = 400
LEDGER_COLUMN = 1
"""`admission`, which every question reads."""


def row(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    term = TERMS[number % len(TERMS)]
    step = number // 40 if term == "trained" else -1
    return {
        "group_id": f"run-{number:07d}",
        "admission": number,
        "prompt_id": f"p{number % 90}",
        "prompt_row": number % 90,
        "prompt_epoch": number // 90,
        "data_source": draw.choice(("sums", "products")),
        "term": term,
        "fault": "",
        "step": step,
        "oldest_version": max(0, step - draw.randrange(3)) if step >= 0 else 0,
        "samples": 4,
        "tokens": draw.randrange(8, 400),
        "acc_mean": -1.0 if term.startswith("failed") else draw.choice((0.0, 0.25, 0.5, 1.0)),
        "attempt": 1,
        "attempts": [{"number": 1, "rollout": f"rollout-{number % 3}"}],
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "ledger").mkdir()
    for first in range(0, COUNT, 100):
        write_rows(folder, [row(number) for number in range(first, first + 100)], after=first, most=100)
    return folder


@pytest.fixture(scope="module")
def ledger(run_dir: Path) -> Ledger:
    return Ledger(run_dir)


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ({}, lambda one: True),
        ({"term": "trained"}, lambda one: one["term"] == "trained"),
        ({"term": "filtered"}, lambda one: one["term"].startswith("filtered")),
        ({"term": "failed"}, lambda one: one["term"].startswith("failed")),
        ({"source": "sums"}, lambda one: one["data_source"] == "sums"),
        ({"prompt": "17"}, lambda one: one["prompt_row"] == 17),
        ({"prompt": "p17"}, lambda one: one["prompt_id"] == "p17"),
        ({"rollout": "rollout-2"}, lambda one: one["admission"] % 3 == 2),
        ({"step_high": "3"}, lambda one: 0 <= one["step"] <= 3),
        ({"step_low": "4"}, lambda one: one["step"] >= 4),
        ({"acc_low": "0.25", "acc_high": "0.5"}, lambda one: 0.25 <= one["acc_mean"] <= 0.5),
        ({"acc_high": "0"}, lambda one: one["acc_mean"] == 0),
        ({"age_low": "1"}, lambda one: one["step"] >= 0 and one["step"] - one["oldest_version"] >= 1),
        ({"tokens_low": "50.5"}, lambda one: one["tokens"] / 4 >= 50.5),
        ({"prompt": "'; DROP VIEW groups; --"}, lambda one: False),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_filter_finds_what_fits_and_nothing_else(ledger: Ledger, query: dict[str, str], fits: Any) -> None:
    wanted, problems = group_filter(query)
    assert problems == []
    expected = [one["group_id"] for one in map(row, reversed(range(COUNT))) if fits(one)]
    page = ledger.page(wanted)
    assert page.total == len(expected)
    assert [one["group_id"] for one in page.rows] == expected[:PAGE_ROWS]


def test_pages_follow_each_other_and_the_order_is_the_one_that_was_asked_for(ledger: Ledger) -> None:
    wanted = [GroupFilter(sort="mean_tokens", descending=False, page=page) for page in range(COUNT // PAGE_ROWS + 1)]
    values = [one["mean_tokens"] for page in wanted for one in ledger.page(page).rows]
    assert len(values) == COUNT
    assert values == sorted(values)


def test_an_address_is_read_back_as_it_was_written_and_what_makes_no_sense_is_named() -> None:
    wanted = GroupFilter(term="stale", acc_low=0.25, step_high=7, descending=False, sort="age", page=3)
    assert group_filter(wanted.query()) == (wanted, [])
    found, problems = group_filter(
        {"acc_low": "much", "step_low": "-1", "sort": "term; --", "page": "9" * 40, "term": "x"}
    )
    assert found == GroupFilter(term="x")
    assert problems == [
        "step_low: must be a whole number >= 0, got '-1'; left out",
        "acc_low: must be a number, got 'much'; left out",
        "sort: must be one of admission, term, step, data_source, acc_mean, mean_tokens, samples, age, attempt, ended_s, "
        "got 'term; --'; left out",
        f"page: must be a whole number >= 0, got '{'9' * 40}'; left out",
    ]


def test_a_browser_cannot_put_words_of_its_own_into_a_question(ledger: Ledger) -> None:
    words = "admission; COPY (SELECT 1) TO '/tmp/x'; --"
    asked = {"page": 2, "sortBy": words, "descending": True}
    assert requested(asked, sortable=SORTABLE, sort="age") == {"page": 1, "sort": "age", "descending": True}
    for page in ("1 OFFSET 0", -3, 0, 1.5, 10**30, None, True):
        assert requested({"page": page, "sortBy": ["age"]}, sortable=SORTABLE, sort="step")["page"] == 0
    refused: list[dict[str, Any]] = [{"sort": words}, {"sort": None}, {"page": "0; --"}, {"page": -1}]
    for wrong in refused:
        with pytest.raises(ValueError, match=r"sort: must be one of|page: must be a whole number"):
            ledger.page(GroupFilter(**wrong))
    for reach in ("SELECT * FROM read_text('/etc/hostname')", "SET enable_external_access = true"):
        with pytest.raises(NotReady, match=r"disabled by configuration|has been locked"):
            ledger.ask(reach)


def test_files_that_are_merged_or_gone_meanwhile_are_listed_again(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    ledger = Ledger(folder)
    listed, last = ledger._list, part_path(folder, 300)

    def merged_meanwhile() -> None:
        listed()
        last.unlink(missing_ok=True)

    ledger._list = merged_meanwhile  # type: ignore[method-assign]
    assert sum(ledger.terms().values()) == 300
    assert ledger.damaged == {}
    shutil.rmtree(folder)
    with pytest.raises(NotReady, match="has no file that can be read yet"):
        ledger.terms()


def test_neighbours_and_counts(ledger: Ledger) -> None:
    assert ledger.neighbours(100) == ("run-0000099", "run-0000101")
    assert ledger.neighbours(0) == (None, "run-0000001")
    assert ledger.terms() == dict.fromkeys(sorted(TERMS), COUNT // len(TERMS))
    assert ledger.sources() == ["products", "sums"]


def test_what_prompts_taught_is_counted_over_all_their_groups(ledger: Ledger) -> None:
    accs: dict[str, list[float]] = {}
    for one in map(row, range(COUNT)):
        accs.setdefault(one["prompt_id"], []).extend([one["acc_mean"]] if one["acc_mean"] >= 0 else [])
    means = [sum(ones) / len(ones) for ones in accs.values() if ones]
    seen = coverage(ledger)
    assert (seen.prompts, seen.groups, seen.epochs) == (90, COUNT, 5)
    assert (seen.never, seen.always) == (means.count(0.0), means.count(1.0))
    assert seen.never + seen.always + seen.between + seen.ungraded == 90
    assert sum(seen.histogram) == len(means)
    assert prompts(ledger, kind="never").total == seen.never
    assert [one["groups"] for one in prompts(ledger).rows[:40]] == [5] * 40


def test_a_row_that_two_files_have_while_they_are_merged_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    write_rows(tmp_path, [row(number) for number in range(60)], after=0, most=60)
    write_rows(tmp_path, [row(number) for number in range(40, 80)], after=40, most=40)
    assert Ledger(tmp_path).page(GroupFilter()).total == 80


@pytest.mark.parametrize("where", ["footer", "page"])
def test_a_damaged_file_is_named_and_the_others_are_shown(tmp_path: Path, where: str) -> None:
    (tmp_path / "ledger").mkdir()
    for first in (0, 100):
        write_rows(tmp_path, [row(number) for number in range(first, first + 100)], after=first, most=100)
    broken = part_path(tmp_path, 100)
    body = bytearray(broken.read_bytes())
    if where == "footer":
        body = body[: len(body) // 2]
    else:
        column = pq.read_metadata(broken).row_group(0).column(LEDGER_COLUMN)
        start = column.dictionary_page_offset or column.data_page_offset
        body[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    broken.write_bytes(body)
    ledger = Ledger(tmp_path)
    assert ledger.page(GroupFilter()).total == 100
    assert list(ledger.damaged) == ["part-000000000100.parquet"]
    assert ledger.page(GroupFilter(sort="ended_s")).total == 100


def test_a_run_without_a_ledger_says_when_there_will_be_one(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="every 20 steps"):
        Ledger(tmp_path).page(GroupFilter())
