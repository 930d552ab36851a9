"""A whole run whose learner trains on two machines: `sluice up` on one, the line that it prints on the other."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sluice.testing import assert_eventually_blocking
from tests.chaos.verdict import problems
from tests.e2e.conftest import ENVIRON, ROOT
from tests.e2e.test_whole_run import GROUPS, TINY, read, steps_trained, until
from tests.free_port import free_port
from tests.two_machines import SecondMachine, second_machine

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.needs("machines"), pytest.mark.timeout(600)]


@pytest.fixture
def second() -> Iterator[SecondMachine]:
    with second_machine() as machine:
        yield machine


def test_a_run_goes_on_when_the_learner_on_the_other_machine_is_killed_and_both_commands_end_with_it(
    second: SecondMachine, start_run, tmp_path: Path
) -> None:
    endpoint = f"{second.here}:{free_port(second.here)}"
    two = ("launch.learner_nnodes=2", f"launch.learner_rdzv_endpoint={endpoint}")
    run = start_run("run.total_steps=6", "rollout.engine=transformers", *two, *TINY)
    until(run, lambda: "sluice learner-node" in run.output())
    (line,) = (line for line in run.output().splitlines() if "sluice learner-node" in line)
    program, *arguments = shlex.split(line)
    assert program == "sluice"
    log = tmp_path / "second.log"
    with log.open("w") as output:
        there = subprocess.Popen(
            second.command(sys.executable, "-m", "sluice.cli.main", *arguments),
            cwd=ROOT,
            env=ENVIRON,
            stdout=output,
            stderr=output,
        )
    try:
        until(run, lambda: steps_trained(run) >= 3)
        (rank,) = (
            process.pid
            for process in psutil.Process(there.pid).children(recursive=True)
            if process.cmdline()[1:5] == ["-P", "-u", "-m", "services.learner"]
        )
        os.kill(rank, signal.SIGKILL)
        assert run.wait(timeout_s=300) == 0, run.output()
        assert_eventually_blocking(lambda: there.poll() is not None, within_s=60, what="the other machine is done")
        assert there.returncode == 0, log.read_text()
    finally:
        if there.poll() is None:
            for process in (*psutil.Process(there.pid).children(recursive=True), there):
                process.kill()
            there.wait(10)
    assert "learner ended with code 1; restart 1 of 3" in run.output()
    steps = [line["step"] for line in read(run.run_dir, "metrics.jsonl") if line["kind"] == "step"]
    assert steps == sorted(steps) == list(range(6))
    assert f'"trained": {6 * GROUPS}' in (run.run_dir / "summary.json").read_text()
    assert problems(run.run_dir) == []
    assert run.left_behind() == []
