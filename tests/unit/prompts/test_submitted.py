"""Prompts that users submit: found by number in a file of any length, with next to nothing in memory."""

import json
from pathlib import Path

import pytest

from services.coordinator.prompts.feed import PromptFeed
from services.coordinator.prompts.submitted import MARK_EVERY, SUBMITTED_FILE, SubmittedPrompts
from services.coordinator.storage.run_files import RunFiles
from sluice.errors import InvalidRequest
from tests.unit.prompts.prompt_cases import raw_row
from tests.unit.prompts.test_prompt_unusable import stream


def row(text: str, truth: str = "2", **other: str) -> dict[str, str]:
    return {"data_source": "mine", "prompt": text, "ground_truth": truth, "extra_info": "", **other}


TEXTS = [row(f"{number}+1=") for number in range(3)]


def write(path: Path, count: int) -> None:
    with path.open("a") as file:
        file.writelines(
            json.dumps({"prompt": str(number), "pad": "x" * (number % 50)}) + "\n" for number in range(count)
        )


def test_rows_are_found_in_any_order_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / SUBMITTED_FILE
    count = 5 * MARK_EVERY + 7
    write(path, count)
    prompts = SubmittedPrompts(path)
    assert len(prompts) == count
    for number in (0, 1, 2, count - 1, MARK_EVERY, MARK_EVERY - 1, MARK_EVERY + 1, 3, 4 * MARK_EVERY + 5, 0):
        assert prompts.row(number)["prompt"] == str(number)
    assert len(prompts._marks) == 6


def test_a_torn_line_has_no_number_also_when_a_restarted_writer_went_on_behind_it(tmp_path: Path) -> None:
    path = tmp_path / SUBMITTED_FILE
    write(path, 3)
    with path.open("a") as file:
        file.write('{"prompt": "to')
    prompts = SubmittedPrompts(path)
    assert len(prompts) == 3
    with path.open("a") as file:
        file.write('\n{"prompt": "next"}\n')
    prompts.follow()
    assert [row["prompt"] for row in map(prompts.row, range(len(prompts)))] == ["0", "1", "2", "next"]
    assert [row["prompt"] for row in map(SubmittedPrompts(path).row, range(4))] == ["0", "1", "2", "next"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / SUBMITTED_FILE).write_text("[1]\n")
    with pytest.raises(ValueError, match=r"submitted\.jsonl: a line must be a JSON object, got list"):
        SubmittedPrompts(tmp_path / SUBMITTED_FILE)


async def test_a_feed_gives_what_was_submitted_first_and_again_after_a_restart(tmp_path: Path) -> None:
    data = stream(tmp_path, [raw_row("9+9="), raw_row("8+8=")])
    files = RunFiles(tmp_path)
    feed = PromptFeed(data=data, files=files, max_prompt_tokens=50)
    first, cursor = feed.next("")
    await feed.submit(TEXTS)
    drawn, cursors = [first.text], [cursor]
    for _ in range(4):
        prompt, cursor = feed.next(cursors[-1])
        drawn.append(prompt.text)
        cursors.append(cursor)
    assert drawn == ["9+9=", "0+1=", "1+1=", "2+1=", "8+8="]
    places = [feed.origin(before, after) for before, after in zip(["", *cursors], cursors, strict=False)]
    assert places == [(0, 0), (-1, 0), (-1, 1), (-1, 2), (0, 1)]
    again = PromptFeed(data=data, files=RunFiles(tmp_path), max_prompt_tokens=50)
    admitted = zip(["", *cursors[:-1]], places, strict=True)
    assert [again.again(cursor, submitted=epoch < 0).text for cursor, (epoch, _) in admitted] == drawn


async def test_what_no_longer_fits_is_passed_over_and_the_run_goes_on(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    wide = PromptFeed(data=stream(tmp_path, [raw_row("9+9=")]), files=files, max_prompt_tokens=50)
    await wide.submit([row("1+1="), row("1+" * 20 + "1=", "21"), row("2+2=", "4")])
    narrow_data = stream(tmp_path, [raw_row("9+9=")], max_prompt_length=10)
    narrow = PromptFeed(data=narrow_data, files=files, max_prompt_tokens=10)
    drawn, cursor = [], ""
    for _ in range(3):
        before = cursor
        prompt, cursor = narrow.next(cursor)
        drawn.append((prompt.text, narrow.origin(before, cursor)))
    assert drawn == [("1+1=", (-1, 0)), ("2+2=", (-1, 2)), ("9+9=", (0, 0))]


async def test_a_bad_prompt_is_refused_and_none_is_added(tmp_path: Path) -> None:
    feed = PromptFeed(data=stream(tmp_path, [raw_row("9+9=")]), files=RunFiles(tmp_path), max_prompt_tokens=50)
    with pytest.raises(InvalidRequest, match="data_source and prompt must be set"):
        await feed.submit([*TEXTS, row("1+1=", data_source="")])
    assert not (tmp_path / SUBMITTED_FILE).exists()
