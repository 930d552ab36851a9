"""`sluice data prepare` with the real huggingface_hub, against a hub of one file on this machine, and with none."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from services.coordinator.prompts.data_files import read_files
from tests.quiet_server import answering
from tests.unit.prompts.test_data_prep import parquet, published_rows

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
COMMIT = "5" * 40
ROUTE = "/datasets/BytedTsinghua-SIA/AIME-2024/resolve/{}/data/aime-2024.parquet"


class _Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for one file: its commit, tag and bytes."""

    body = b""

    def do_HEAD(self) -> None:
        found = self.path in (ROUTE.format("main"), ROUTE.format(COMMIT))
        self.send_response(200 if found else 404)
        if found:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", str(len(self.body)))
        else:
            self.send_header("X-Error-Code", "RevisionNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path != ROUTE.format("other"):
            self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub whose AIME-2024 has three problems, 32 times."""
    _Hub.body = parquet(tmp_path / "published" / "aime-2024.parquet", published_rows(32, 3)).read_bytes()
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), _Hub)) as url:
        yield url


def prepare(tmp_path: Path, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, with an empty cache of the hub."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sluice.cli.main",
            "data",
            "prepare",
            "aime-2024",
            "--out",
            str(tmp_path / "out"),
            *flags,
        ],
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("flags", [(), ("--revision", COMMIT)], ids=["newest", "pinned"])
def test_it_is_fetched_and_the_revision_is_said(tmp_path: Path, hub: str, flags: tuple[str, ...]) -> None:
    done = prepare(tmp_path, *flags, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "96 rows, 3 distinct prompts" in done.stdout
    assert f"revision {COMMIT}" in done.stdout
    assert read_files([str(tmp_path / "out" / "aime-2024.parquet")]).size == 3


def test_a_revision_that_the_hub_does_not_have_is_said(tmp_path: Path, hub: str) -> None:
    done = prepare(tmp_path, "--revision", "other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 1
    assert "RevisionNotFoundError" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_network_one_message_says_how_to_go_on(tmp_path: Path) -> None:
    done = prepare(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    message = done.stderr.partition("\n")[2]
    assert message.startswith("sluice: data prepare: BytedTsinghua-SIA/AIME-2024 could not be fetched")
    assert "curl -L -o aime-2024.parquet https://huggingface.co/datasets/BytedTsinghua-SIA/AIME-2024/resolve" in message
    assert "sluice data prepare aime-2024 --source aime-2024.parquet" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()
