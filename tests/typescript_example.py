"""examples/reward-typescript, built, and its service as a process."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sluice.testing import assert_eventually_blocking

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "reward-typescript"

_NOT_TO_BE_HAD = 3
"""What scripts/typescript.sh ends with where node or its registry is missing."""


def built() -> Path:
    """The example's folder, built. Skips the test where there is no node, and away from CI where there is no registry."""
    if shutil.which("node") is None:
        pytest.skip(
            "node is not on the PATH: install Node.js 20 or newer to run the tests of examples/reward-typescript"
        )
    made = subprocess.run(
        [ROOT / "scripts" / "typescript.sh"], capture_output=True, text=True, timeout=240, check=False
    )
    if made.returncode == _NOT_TO_BE_HAD and not os.environ.get("CI"):
        pytest.skip(made.stdout.strip().splitlines()[-1])
    assert made.returncode == 0, made.stdout + made.stderr
    return EXAMPLE


class Service:
    """A running one."""

    def __init__(self, log_path: Path, *arguments: str) -> None:
        command = ["node", "dist/src/main.js", "--port", "0", *arguments]
        self._log_path = log_path
        with log_path.open("w") as log:
            self.process = subprocess.Popen(command, cwd=built(), stdout=log, stderr=subprocess.STDOUT)

    def said(self, event: str) -> list[dict[str, object]]:
        """Its log's lines about an event."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def output(self) -> str:
        """Its whole log."""
        return self._log_path.read_text()

    def until_listening(self) -> str:
        """Its address, when it serves."""
        assert_eventually_blocking(lambda: bool(self.said("listening")), within_s=30.0, what=self.output())
        return f"127.0.0.1:{self.said('listening')[0]['port']}"

    def end(self, *, within_s: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


@contextmanager
def typescript_service(log_path: Path, *arguments: str) -> Iterator[Service]:
    """The service with these arguments; killed in the end if it still runs."""
    service = Service(log_path, *arguments)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait(10)
