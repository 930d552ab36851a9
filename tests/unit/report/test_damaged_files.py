"""Files of a run directory that somebody else has written into: one line that names the file, never a traceback."""

import os
import sys
from pathlib import Path

import pytest

from services.learner.checkpoint.export_checkpoint import read_config
from sluice.cli.main import main
from sluice.errors import SluiceError
from sluice.report.metrics import read_metrics
from sluice.report.samples import read_samples


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "step": 1' + "0" * 400 + "}",
        '{"kind": "step", "step": null}',
        '{"kind": "rollback"}',
        '{"kind": "rollback", "to": "x", "lineage": 1}',
        '{"kind": "rollback", "to": 1, "lineage": null}',
        "[1]",
    ],
)
def test_a_line_of_metrics_that_is_none_of_ours_is_named_with_its_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"kind": "step", "step": 0, "x": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl"):
        read_metrics(tmp_path)


def test_a_line_that_is_nested_too_deeply_counts_as_torn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 0}\n' + "[" * 100_000 + "\n")
    found = read_metrics(tmp_path)
    assert (len(found.steps), found.torn_lines) == (1, 1)


@pytest.mark.parametrize(
    ("prompt", "samples"),
    [('"p"', "null"), ('"p"', "[null]"), ("null", "[]"), ('"p"', '[{"text": null}]'), ("[]", "[]")],
)
def test_a_group_for_people_that_is_none_of_ours_is_named_with_its_file(
    tmp_path: Path, prompt: str, samples: str
) -> None:
    line = f'{{"group_id": "a", "step": 1, "prompt": {prompt}, "samples": {samples}}}\n'
    (tmp_path / "samples.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"samples\.jsonl"):
        read_samples(tmp_path)


def test_a_ledger_of_which_no_file_can_be_read_has_an_open_account(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "part-000000000000.parquet").write_bytes(b"PAR1xxxxPAR1")
    assert main(["ledger", "--run-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "cannot be read" in said.err
    assert "NOT CLOSED: a file of the ledger cannot be read" in said.out


def test_a_configuration_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SluiceError, match=r"config\.yaml"):
        read_config(tmp_path)


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["ledger", "--run-dir", "x" * 5000], ["explain", "1", "--run-dir", "x" * 5000]):
        assert main(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sluice: File name too long: ")
        assert len(line) < 300


def test_a_terminal_that_has_no_such_character_is_shown_its_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="ascii") as stdout, open(reader, "rb") as said:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr("sluice.cli.config._show", lambda _: print("é") or 0)
        assert main(["config", "show"]) == 0
        stdout.close()
        assert said.read() == b"\\xe9\n"
