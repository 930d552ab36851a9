"""The services of examples/*-typescript as processes. `make typescript` builds it: `needs("typescript-example")`."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sluice.testing import assert_eventually_blocking

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "reward-typescript"
ENVIRONMENT_EXAMPLE = ROOT / "examples" / "environment-typescript"


class Service:
    """A running one."""

    def __init__(self, log_path: Path, *arguments: str, example: Path = EXAMPLE) -> None:
        main = "dist/src/main.js" if example == EXAMPLE else f"dist/{example.name}/src/main.js"
        command = ["node", main, "--port", "0", *arguments]
        self._log_path = log_path
        with log_path.open("w") as log:
            self.process = subprocess.Popen(command, cwd=example, stdout=log, stderr=subprocess.STDOUT)

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
def typescript_service(log_path: Path, *arguments: str, example: Path = EXAMPLE) -> Iterator[Service]:
    """The service with these arguments; killed in the end if it still runs."""
    service = Service(log_path, *arguments, example=example)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.wait(10)
