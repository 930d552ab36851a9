"""`buf breaking` against the released image: messages may grow, what was released stays. Runs without a network."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.unit.docs.pages import ROOT


def breaking(folder: Path, *changes: tuple[str, str]) -> str:
    """What buf says after changes of the coordinator's protos; empty when nothing breaks."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    shutil.copy(ROOT / "buf.yaml", folder)
    path = folder / "protos/sluice/v1/coordinator.proto"
    text = path.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "buf breaking" in line)
    command = [str(Path(sys.executable).with_name("buf")), *line.split()[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=50, check=False).stdout


def test_a_new_field_breaks_nothing(tmp_path: Path) -> None:
    assert breaking(tmp_path, ("  string run_dir = 13;", "  string run_dir = 13;\n  string more = 99;")) == ""


def test_a_change_of_what_was_released_is_refused(tmp_path: Path) -> None:
    said = breaking(
        tmp_path,
        ("  string run_dir = 13;", ""),
        ("  double train_wall_s = 11;", "  int64 train_wall_s = 11;"),
        ("  int64 total_steps = 5;", "  int64 all_steps = 5;"),
        ("  rpc GetConfig(GetConfigRequest) returns (GetConfigResponse);", ""),
        ("  RUN_STATE_PAUSED = 3;", "  RUN_STATE_PAUSED = 33;"),
    ).lower()
    for fault in (
        'field "13" with name "run_dir" on message "getstatusresponse" was deleted',
        'field "11" with name "train_wall_s" on message "getstatusresponse" changed type from "double" to "int64"',
        'field "5" on message "getstatusresponse" changed name from "total_steps" to "all_steps"',
        'rpc "getconfig"',
        'enum value "3"',
    ):
        assert fault in said
