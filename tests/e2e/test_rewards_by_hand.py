"""A dry run whose rewards are all started by hand checks the one that registers, as the run would use it."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sluice.testing import assert_eventually_blocking
from tests.e2e.conftest import ROOT
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_dry_run_without_rewards_of_its_own_checks_the_one_that_registers(tmp_path: Path) -> None:
    model, output_path = write_tiny_model(tmp_path / "model"), tmp_path / "output.log"
    dry_run = [sys.executable, "-m", "sluice.cli.main", "up", "-c", "recipes/cpu-demo.yaml", "--dry-run", "--plain"]
    dry_run += ["--reward-replicas", "0", "--set", f"model.path={model}", "--set", "network.coordinator_port=0"]
    with output_path.open("w") as output:
        process = subprocess.Popen(dry_run, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    says = re.compile(r"launch\.reward_replicas is 0: waiting 300 s for a reward to register with (\S+)")
    assert_eventually_blocking(lambda: says.search(output_path.read_text()) is not None, within_s=60.0)
    found = says.search(output_path.read_text())
    assert found is not None
    by_hand = [sys.executable, "-m", "services.reward", "--coordinator", found[1], "--service-id", "by-hand"]
    reward = subprocess.Popen([*by_hand, "--port", "0"], cwd=ROOT, stdout=subprocess.DEVNULL)
    children: set[str] = set()

    def has_ended() -> bool:
        children.update(_services_of(process.pid))
        return process.poll() is not None

    try:
        assert_eventually_blocking(has_ended, within_s=60.0, what="the dry run has ended")
        assert process.returncode == 0, output_path.read_text()
    finally:
        reward.kill()
        reward.wait(10)
        process.kill()
        process.wait(10)
    assert children == {"services.coordinator"}
    assert re.findall(r"service_registered: (\S+)", output_path.read_text()) == ["by-hand"]
    assert "reward_checked: mixadd3" in output_path.read_text()


def _services_of(pid: int) -> set[str]:
    """The modules that the children of a launcher run."""
    found: set[str] = set()
    try:
        for child in psutil.Process(pid).children(recursive=True):
            found.update(word for word in child.cmdline() if word.startswith("services."))
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # it has ended meanwhile
        pass
    return found
