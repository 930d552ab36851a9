"""The demo's base model, built as a user would get it (cached between test runs), and whole runs as subprocesses."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from sluice.cli.up import demo_base_dir
from sluice.testing import assert_eventually_blocking

ROOT = Path(__file__).parent.parent.parent

ENVIRON = dict(os.environ)
"""As it was when the tests were collected: an engine that a test has in this process leaves settings of its own, such as the
interface that gloo listens on."""


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The warm-up's model folder."""
    return build_base()


def build_base() -> Path:
    """Builds the warm-up's model unless it is cached; returns its folder."""
    base = demo_base_dir()
    subprocess.run([sys.executable, "-m", "services.learner.sft_base.build", "--out", str(base)], check=True, cwd=ROOT)
    return base


class Run:
    """A `sluice up` process on the demo recipe with a short schedule."""

    def __init__(
        self, base: Path, run_dir: Path, overrides: Sequence[str], *, environ: Mapping[str, str] = ENVIRON
    ) -> None:
        self.run_dir = run_dir
        self.output_path = run_dir.parent / "output.log"
        command = [
            sys.executable,
            "-m",
            "sluice.cli.main",
            "up",
            "-c",
            str(ROOT / "recipes" / "cpu-demo.yaml"),
            "--plain",
        ]
        command += ["--run-dir", str(run_dir), "--set", f"model.path={base}", "--set", "network.coordinator_port=0"]
        command += [part for override in overrides for part in ("--set", override)]
        with self.output_path.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environ)

    def wait(self, *, timeout_s: float) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Kills what still runs."""
        if self.process.poll() is None:
            for pid in [self.process.pid, *self.pids()]:  # the launcher first: it would start the others again
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)

    def output(self) -> str:
        """What it has printed so far."""
        return self.output_path.read_text()

    def pids(self, *words: str) -> list[int]:
        """Processes of this run whose command line has all of these words."""
        return [process.pid for process in self._processes() if all(word in _cmdline(process) for word in words)]

    def left_behind(self) -> list[str]:
        """Command lines of processes that mention this run's directory."""
        return left_behind(self.run_dir)

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []


def left_behind(folder: Path) -> list[str]:
    """Command lines of processes that mention the folder."""
    lines = [" ".join(_cmdline(process)) for process in psutil.process_iter()]
    return [line for line in lines if str(folder) in line]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def until(run: Run, condition: Callable[[], bool], *, within_s: float = 180.0) -> None:
    """Returns when the condition holds; fails with the run's output when it ends first or the time is over."""

    def holds() -> bool:
        assert run.process.poll() is None, run.output()
        return condition()

    assert_eventually_blocking(holds, within_s=within_s)


@pytest.fixture
def start_run(base_model: Path, tmp_path: Path) -> Iterator["type[Run]"]:
    """Starts a run; whatever is still there when the test ends is killed, and the test fails if anything was."""
    started: list[Run] = []

    def start(*overrides: str) -> Run:
        started.append(Run(base_model, tmp_path / "run", overrides))
        return started[-1]

    yield start  # type: ignore[misc]
    for run in started:
        run.end()
