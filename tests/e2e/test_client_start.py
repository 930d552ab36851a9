"""docs/client.md's example that starts a run, as it stands: a whole small run from a script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_secured_run import RECIPE
from tests.free_port import free_port
from tests.tiny_model import write_tiny_model
from tests.unit.docs.pages import ROOT, blocks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_script_starts_a_run_watches_it_and_waits_for_its_end(tmp_path: Path) -> None:
    (code,) = [code for code in blocks(ROOT / "docs" / "client.md", "python") if "Client.start" in code]
    changes = {
        "model": RECIPE["model"] | {"path": str(write_tiny_model(tmp_path / "model"))},
        "network": {"coordinator_port": free_port()},
        "data": RECIPE["data"] | {"val_files": ["mixadd3:fresh"]},
        "eval": {"prompts": 4, "n": 1, "every_steps": 0},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    log = tmp_path / "runs" / "sums" / "logs" / "launcher.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    assert "avg@1" in done.stdout
    assert "finished" in log.read_text()
