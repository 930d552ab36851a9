"""The program that stands between a launcher elsewhere and a task on a node (sluice/process/placed.py), as a real process."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sluice.process.child import module_command
from sluice.process.placed import BEAT, KILL, SAID, TERM
from sluice.testing import assert_eventually_blocking

pytestmark = pytest.mark.integration


@contextmanager
def placed(log: Path, script: str, *, silent_beats: int = 1000) -> Iterator["subprocess.Popen[bytes]"]:
    argv = [*module_command("sluice.process.placed"), "0.05", str(silent_beats), str(log), "/bin/sh", "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env={**os.environ, "SLURM_NTASKS": "8"}, **pipes) as process:  # type: ignore[call-overload]
        assert [word(process) for _ in range(2 - log.exists())][-1] == "started"
        yield process
        process.kill()


def word(process: "subprocess.Popen[bytes]") -> str:
    """What the program says next."""
    assert process.stdout is not None
    return process.stdout.readline().decode().removeprefix(SAID).strip()


def tell(process: "subprocess.Popen[bytes]", byte: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(byte)
    process.stdin.flush()


def ended(process: "subprocess.Popen[bytes]") -> str:
    """The last word, past any `alive`."""
    while (said := word(process)) == "alive":
        pass
    return said


def test_a_task_has_its_own_code_its_log_and_no_variable_of_the_queue(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch(mode=0o600)
    with placed(log, "env | grep -c ^SLURM_; cat; exit 3") as process:
        assert ended(process) == "ended 3"
        assert process.wait(10) == 3
    assert log.read_text() == "0\n"
    with placed(log, "trap 'exit 7' TERM; echo up; sleep 1000 & wait") as process:
        assert_eventually_blocking(lambda: log.read_text().endswith("up\n"))
        tell(process, TERM)
        assert ended(process) == "ended 7"
    with placed(log, "trap '' TERM; echo deaf; sleep 1000") as process:
        assert_eventually_blocking(lambda: log.read_text().endswith("deaf\n"))
        assert word(process) == "alive"
        tell(process, BEAT + TERM + KILL)
        assert ended(process) == f"ended -{signal.SIGKILL.value}"
        assert process.wait(10) == 128 + 9


def test_a_task_ends_when_its_launcher_leaves_or_is_silent(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    deaf = "trap '' TERM; echo $$; sleep 1000"
    with placed(log, deaf) as leaves, placed(log, deaf, silent_beats=3) as silent:
        assert_eventually_blocking(lambda: log.read_text().count("\n") == 2)
        assert leaves.stdin is not None
        leaves.stdin.close()
        assert [ended(process) for process in (leaves, silent)] == ["ended -9", "ended -9"]
        assert not any(map(psutil.pid_exists, map(int, log.read_text().split())))


def test_what_a_node_cannot_write_goes_to_the_launcher(tmp_path: Path) -> None:
    with placed(tmp_path / "missing", "echo out; echo err >&2") as process:
        assert ended(process) == "ended 0"
        assert process.stderr is not None
        assert process.stderr.read() == b"out\nerr\n"
