"""JSON Lines and Parquet files, duplicates and what can be wrong with them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.coordinator.prompts.data_files import read_files
from services.coordinator.prompts.sources import open_source
from sluice.errors import DataError
from tests.unit.prompts.prompt_cases import raw_row


def json_lines(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


@pytest.mark.parametrize("write", [json_lines, parquet])
def test_both_formats_give_the_same_rows(write: Any, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": f"{i}+1="}] for i in range(3)]
    rows = [raw_row(chat, str(i + 1), extra_info={"index": i}, unused="x") for i, chat in enumerate(chats)]
    source = read_files([write(tmp_path / f"set.{'jsonl' if write is json_lines else 'parquet'}", rows)])
    assert [source.row(i).ground_truth for i in range(3)] == ["1", "2", "3"]
    assert source.row(2).prompt[0].content == "2+1="  # type: ignore[union-attr]
    assert source.row(2).extra_info_json == '{"index": 2}'
    assert source.size == 3


def test_duplicates_are_removed_across_files_and_counted(tmp_path: Path) -> None:
    first = json_lines(tmp_path / "a.jsonl", [raw_row("a", "1"), raw_row("b", "2"), raw_row("a", "1")])
    second = json_lines(tmp_path / "b.jsonl", [raw_row("b", "other"), raw_row("c", "3")])
    source = read_files([first, second])
    assert [row.prompt for row in source.rows] == ["a", "b", "c"]
    assert source.row(1).ground_truth == "2"
    assert source.describe() == {"rows": 3, "duplicates_removed": 2, "conflicting_answers": 1}


def test_the_same_prompt_of_another_data_source_is_no_duplicate(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [raw_row("a"), raw_row("a", data_source="other")])
    assert read_files([path]).size == 2


def test_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{json.dumps(raw_row('a'))}\n\n  \n")
    assert read_files([str(path)]).size == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", "", "no prompts"),
        ("a.jsonl", "{}\n", "a.jsonl: line 1: data_source: must be non-empty text"),
        ("a.jsonl", json.dumps(raw_row()) + "\n\n{oops\n", "a.jsonl: line 3: not valid JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl: line 1: must be an object"),
        ("a.parquet", "not parquet", "a.parquet: not a readable Parquet file"),
        ("a.csv", "", "a.csv: must end in .jsonl or .parquet"),
    ],
)
def test_an_unusable_file_is_refused_by_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_files([str(tmp_path / name)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_files([str(tmp_path / "none.jsonl")])


def test_a_malformed_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [raw_row("a"), raw_row("b", None)]
    with pytest.raises(DataError, match=r"set\.parquet: row 1: reward_model\.ground_truth: must be given"):
        read_files([parquet(tmp_path / "set.parquet", rows)])


def test_missing_parquet_columns_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "set.parquet", [{"data_source": "x", "question": "y"}])
    with pytest.raises(DataError, match="must have columns prompt, reward_model, got data_source, question"):
        read_files([path])


@pytest.mark.parametrize(
    ("names", "held_out", "message"),
    [
        (["mixadd3:train", "a.jsonl"], False, "mixadd3:train: is endless and must be the only source"),
        (["mixadd3:held_out"], False, "data.train_files: mixadd3:SPLIT must be one of train here, got 'held_out'"),
        (["mixadd3:train"], True, "data.val_files: mixadd3:SPLIT must be one of held_out, fresh here, got 'train'"),
    ],
)
def test_sources_that_do_not_go_together_are_refused(names: list[str], held_out: bool, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(names, seed=0, held_out=held_out)


@pytest.mark.parametrize("mark", ["\ufeff", ""])
def test_a_byte_order_mark_is_accepted(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{mark}{json.dumps(raw_row('a'))}\n{json.dumps(raw_row('b'))}\n", encoding="utf-8")
    assert [row.prompt for row in read_files([str(path)]).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"a\.jsonl: line 3: must be UTF-8, got the byte 0xe9 at character \d+; convert"),
        ("cp1252", r"a\.jsonl: line 3: must be UTF-8, got the byte 0xe9"),
        ("utf-16", r"a\.jsonl: line 1: must be UTF-8, got the byte 0xff at character 1"),
    ],
)
def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path: Path, encoding: str, message: str) -> None:
    rows = [raw_row("a"), raw_row("b"), raw_row("caf\u00e9")]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=message):
        read_files([str(tmp_path / "a.jsonl")])


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_line_that_python_cannot_read_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(raw_row('a'))}\n{line}\n")
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: "):
        read_files([str(tmp_path / "a.jsonl")])


def test_a_parquet_row_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([raw_row("a"), raw_row("b")])
    raw = pa.array([b"a", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.schema.get_field_index("prompt"), "prompt", raw), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 1: must be UTF-8"):
        read_files([str(tmp_path / "a.parquet")])
