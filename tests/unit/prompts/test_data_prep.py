"""`sluice data prepare` on files of this machine: what is written, counted, printed and refused."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services.coordinator.data_prep.__main__ import main
from services.coordinator.data_prep.distinct import Counts, write_distinct
from services.coordinator.data_prep.published import PUBLISHED
from services.coordinator.prompts.data_files import read_files
from sluice.config.load import parse_config
from sluice.errors import DataError
from tests.unit.prompts.prompt_cases import raw_row


def published_rows(copies: int, prompts: int) -> list[dict[str, Any]]:
    """Rows as the published files have them: every copy with an index of its own, one column more than is read."""
    return [
        raw_row([{"role": "user", "content": f"{k}+1="}], str(k + 1), extra_info={"index": f"{copy}-{k}"}, split="x")
        for copy in range(copies)
        for k in range(prompts)
    ]


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_every_prompt_is_written_once_with_all_that_a_run_reads(tmp_path: Path) -> None:
    source = parquet(tmp_path / "source.parquet", published_rows(copies=100, prompts=3))
    counts = write_distinct(source, tmp_path / "out" / "target.parquet")
    assert counts == Counts(rows=300, prompts=3, conflicts=0)
    table = pq.read_table(tmp_path / "out" / "target.parquet")
    assert (table.num_rows, table.column_names) == (3, ["data_source", "prompt", "reward_model", "extra_info"])
    assert [info["index"] for info in table["extra_info"].to_pylist()] == ["0-0", "0-1", "0-2"]
    written, direct = read_files([str(tmp_path / "out" / "target.parquet")]), read_files([str(source)])
    assert written.rows == direct.rows
    assert written.duplicates == 0


def test_copies_are_found_across_batches_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.coordinator.prompts.data_files._BATCH_ROWS", 2)
    source = parquet(tmp_path / "source.parquet", published_rows(copies=4, prompts=5))
    assert write_distinct(source, tmp_path / "target.parquet") == Counts(rows=20, prompts=5, conflicts=0)
    assert read_files([str(tmp_path / "target.parquet")]).rows == read_files([str(source)]).rows


def test_the_first_of_two_answers_stays_and_the_other_is_counted(tmp_path: Path) -> None:
    source = parquet(tmp_path / "source.parquet", [raw_row("a", "1"), raw_row("a", "2"), raw_row("a", "1")])
    assert write_distinct(source, tmp_path / "target.parquet") == Counts(rows=3, prompts=1, conflicts=1)
    assert read_files([str(tmp_path / "target.parquet")]).row(0).ground_truth == "1"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([raw_row("a"), raw_row("b", None)], r"source\.parquet: row 1: reward_model\.ground_truth: must be given"),
        ([{"question": "a"}], "must have columns data_source, prompt, reward_model, got question"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_leaves_nothing(tmp_path: Path, rows: Any, message: str) -> None:
    source = parquet(tmp_path / "source.parquet", rows)
    with pytest.raises(DataError, match=message):
        write_distinct(source, tmp_path / "out" / "target.parquet")
    assert not list(tmp_path.glob("out/*"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source.parquet"
    pq.write_table(pa.Table.from_pylist(published_rows(1, 1)).slice(0, 0), source)
    with pytest.raises(DataError, match="no prompts"):
        write_distinct(source, tmp_path / "target.parquet")


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("place", ["{file}", "data/{file}"], ids=["in the folder", "in a clone"])
def test_counts_digest_and_recipe_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: str
) -> None:
    source = parquet(tmp_path / "in" / place.format(file=f"{name}.parquet"), published_rows(copies=32, prompts=2))
    assert main([name, "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "64 rows, 2 distinct prompts" in printed
    assert hashlib.sha256(source.read_bytes()).hexdigest() in printed
    said = printed.partition("In the recipe:")[2]
    files = "" if "train_files" in said else "  train_files: [mixadd3:train]\n"
    config = parse_config(f"{said}\nmodel: {{path: m}}".replace("data:\n", f"data:\n{files}", 1), where="printed")
    assert str(tmp_path / "out" / f"{name}.parquet") in (*config.data.train_files, *config.data.val_files)
    if name == "aime-2024":
        assert (config.eval.prompts, config.eval.n, config.eval.small_prompts, config.eval.small_n) == (2, 32, 2, 32)


def test_a_file_that_is_there_stays_unless_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "source.parquet", published_rows(copies=2, prompts=1))
    target = tmp_path / "out" / "aime-2024.parquet"
    target.parent.mkdir()
    target.write_text("mine")
    argv = ["aime-2024", "--source", str(source), "--out", str(tmp_path / "out")]
    assert main(argv) == 2
    assert "aime-2024.parquet: exists; give --force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main([*argv, "--force"]) == 0
    assert read_files([str(target)]).size == 1


def test_the_source_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "aime-2024.parquet", published_rows(copies=2, prompts=1))
    before = source.read_bytes()
    assert main(["aime-2024", "--source", str(tmp_path), "--out", str(tmp_path), "--force"]) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["aime"], "NAME must be one of dapo-math-17k, aime-2024, got 'aime'"),
        (["aime-2024", "--source", "none"], "--source: must be aime-2024.parquet or a folder that has it, none is"),
        (["aime-2024", "--source", ".", "--revision", "1"], "--revision: is of the hub"),
    ],
)
def test_bad_usage_is_refused_with_the_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main([*argv, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_without_the_hubs_package_it_says_what_to_install_and_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # what Python itself keeps for "not there"
    assert main(["aime-2024", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "pip install 'sluice-rl[data]'" in said
    assert "sluice data prepare aime-2024 --source aime-2024.parquet" in said
