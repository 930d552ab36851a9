"""JSON Lines and Parquet files, duplicates and what can be wrong with them."""

import json
import math
import os
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.coordinator.prompts.data_files import read_files
from services.coordinator.prompts.named_sources import open_source
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\x1f\x8b\x08\x00", r"a\.jsonl: is compressed with gzip; unpack it with gunzip"),
        ("a.parquet", b"PK\x03\x04zip", r"a\.parquet: is a zip archive; unpack it with unzip"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"a\.parquet: is a pointer of Git LFS, not the data",
        ),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"a\.jsonl: is a pointer of Git LFS, not the data",
        ),
        ("a.jsonl", b"PAR1....PAR1", r"a\.jsonl: is a Parquet file; name it \.parquet"),
        ("a.parquet", b"PAR1....PAR1", r"a\.parquet: not a readable Parquet file"),
        (
            "a.jsonl",
            b'[{"a": 1},\n',
            r"a\.jsonl: line 1: not valid JSON: .* at character 12; a line holds one whole object",
        ),
        ("a.jsonl", b"{\n", r"a\.jsonl: line 1: not valid JSON: .* at character 3; a line holds one whole object"),
        (
            "a.jsonl",
            b"{}{}\n",
            r"a\.jsonl: line 1: not valid JSON: Extra data at character 3; a line holds one whole object",
        ),
        (
            "a.jsonl",
            b'{"question": "?"}\n',
            r"line 1: data_source: .*; a row has data_source, .*, this one has 'question'",
        ),
    ],
)
def test_a_file_of_another_form_is_named_with_what_it_is(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_files([str(tmp_path / name)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://host/a.parquet", "https://host/a.parquet: must be a file of this machine"),
        ("s3://bucket/a.jsonl", "s3://bucket/a.jsonl: must be a file of this machine"),
        ("FOLDER", "must be a file, is a folder; name the files in it"),
        ("FOLDER/*.jsonl", r"\*.jsonl: no such file; patterns are not expanded, name every file"),
        ("FOLDER/pipe.jsonl", "pipe.jsonl: must be a regular file"),
        ("FOLDER/loop.jsonl", "loop.jsonl: cannot be read: Too many levels of symbolic links"),
        ("a" * 300 + ".jsonl", "cannot be read: File name too long"),
        ("a\0.jsonl", "no such file"),
        ("", "the name of a file must not be empty"),
    ],
)
def test_a_name_that_is_no_file_is_refused_with_the_fix(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DataError, match=message):
        read_files([name.replace("FOLDER", str(tmp_path))])


def test_the_ending_may_be_in_capitals_and_files_put_together_keep_their_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "A.JSONL"
    path.write_text(f"{json.dumps(raw_row('a'))}\n\ufeff{json.dumps(raw_row('b'))}\n", encoding="utf-8")
    assert read_files([str(path)]).size == 2


def test_a_damaged_page_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([raw_row("a" * 100)]), path)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: not a readable Parquet file"):
        read_files([str(path)])


def truths(values: pa.Array) -> pa.Table:
    rows = [raw_row(f"prompt {index}") for index in range(len(values))]
    reward_model = pa.StructArray.from_arrays([values], ["ground_truth"])
    table = pa.Table.from_pylist(rows)
    return table.set_column(table.schema.get_field_index("reward_model"), "reward_model", reward_model)


@pytest.mark.parametrize(
    ("values", "written"),
    [
        (pa.array([5, -3]), ["5", "-3"]),
        (pa.array([0.1, 125.0], pa.float32()), ["0.1", "125"]),
        (pa.array([0.1, 2.5], pa.float16()), ["0.1", "2.5"]),
        (pa.array([Decimal("5.50"), Decimal("1200.00")]), ["5.5", "1200"]),
        (pa.array([b"5", "é".encode()]), ["5", "é"]),
        (pa.array([date(2024, 1, 2)]), ["2024-01-02"]),
        (pa.array(["5", "6"]).dictionary_encode(), ["5", "6"]),
        (pa.array(["5"], pa.large_string()), ["5"]),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), ['{"a": 1}']),
    ],
)
def test_a_ground_truth_of_any_columns_type_is_written_as_people_write_it(
    tmp_path: Path, values: pa.Array, written: list[str]
) -> None:
    pq.write_table(truths(values), tmp_path / "a.parquet")
    assert [row.ground_truth for row in read_files([str(tmp_path / "a.parquet")]).rows] == written


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([b"\xff"]), "row 0: reward_model.ground_truth: must be representable as JSON: got b'.xff'"),
        (
            pa.array([1.0, math.nan], pa.float32()),
            "row 1: reward_model.ground_truth: must be representable as JSON, got nan",
        ),
        (
            pa.array([1], pa.timestamp("ns")),
            "row 0: must hold values that Python has: Nanosecond .*; write times in micro",
        ),
        (pa.array([1], pa.time64("ns")), "row 0: must hold values that Python has"),
        (pa.array([1], pa.duration("ns")), "row 0: must hold values that Python has"),
        (pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64())), "row 0: a mapping has a key twice"),
    ],
)
def test_a_ground_truth_without_a_text_is_refused_by_row(tmp_path: Path, values: pa.Array, message: str) -> None:
    pq.write_table(truths(values), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        read_files([str(tmp_path / "a.parquet")])


@pytest.mark.parametrize("write", [json_lines, parquet])
@pytest.mark.parametrize("column", ["images", "videos", "audios"])
def test_what_a_text_model_does_not_see_is_refused_by_row(tmp_path: Path, write: Any, column: str) -> None:
    ending = "jsonl" if write is json_lines else "parquet"
    rows = [raw_row(f"p{index}") | {column: []} for index in range(40)]
    assert read_files([write(tmp_path / f"a.{ending}", rows)]).size == 40
    rows[33][column] = [{"path": "a.png"}]
    with pytest.raises(DataError, match=rf"{'line 34' if ending == 'jsonl' else 'row 33'}: {column}: must be empty"):
        read_files([write(tmp_path / f"b.{ending}", rows)])


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["s"]), pa.array(["p"]), pa.array(["q"]), pa.array([{"ground_truth": "1"}])]
    table = pa.Table.from_arrays(columns, names=["data_source", "prompt", "prompt", "reward_model"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: must have each column once, got prompt 2 times"):
        read_files([str(tmp_path / "a.parquet")])


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
