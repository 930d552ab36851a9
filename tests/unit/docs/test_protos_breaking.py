"""`buf breaking` against the released image: messages may grow, what was released stays. Runs without a network."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.docs.pages import ROOT


@pytest.fixture
def breaking(tmp_path: Path) -> Callable[[str, str], str]:
    """What buf says after one change of the coordinator's protos; empty when nothing breaks."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)

    def change(old: str, new: str) -> str:
        path = tmp_path / "protos/sluice/v1/coordinator.proto"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "buf breaking" in line)
        command = [str(Path(sys.executable).with_name("buf")), *line.split()[1:]]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False).stdout

    return change


def test_a_new_field_breaks_nothing(breaking: Callable[[str, str], str]) -> None:
    assert breaking("  string run_dir = 13;", "  string run_dir = 13;\n  string more = 99;") == ""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("  string run_dir = 13;", "", 'field "13" with name "run_dir" on message "GetStatusResponse" was deleted'),
        ("  string run_dir = 13;", "  int64 run_dir = 13;", "changed type"),
        ("  string run_dir = 13;", "  string folder = 13;", "changed name"),
        ("  rpc GetConfig(GetConfigRequest) returns (GetConfigResponse);", "", 'RPC "GetConfig"'),
        ("  RUN_STATE_PAUSED = 3;", "  RUN_STATE_PAUSED = 33;", 'enum value "3"'),
    ],
    ids=["deleted", "retyped", "renamed", "rpc", "enum"],
)
def test_a_change_of_what_was_released_is_refused(
    breaking: Callable[[str, str], str], old: str, new: str, says: str
) -> None:
    assert says.lower() in breaking(old, new).lower()
