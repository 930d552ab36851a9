"""`sluice ... | head`: whoever read the output may leave before its end."""

import os
from pathlib import Path

import pytest

from sluice.cli.main import main

RECIPE = Path(__file__).parents[3] / "recipes" / "two-turns.yaml"


def test_a_reader_that_has_left_ends_the_command_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        assert main(["config", "show", "-c", str(RECIPE)]) == 141
        print("more", flush=True)


def test_another_pipe_that_breaks_is_not_taken_for_the_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def breaks(_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("sluice.cli.config._show", breaks)
    with (tmp_path / "output").open("w") as output:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(BrokenPipeError):
            main(["config", "show", "-c", str(RECIPE)])
