"""examples/reward-typescript by itself: its own tests, the contract, and how it ends."""

import os
import subprocess
from pathlib import Path

import pytest

from sluice.testing.conformance import check_reward
from tests.typescript_example import EXAMPLE, typescript_service

pytestmark = [pytest.mark.integration, pytest.mark.needs("typescript-example")]


def test_its_own_tests_pass() -> None:
    done = subprocess.run(
        ["npm", "test", "--silent"], cwd=EXAMPLE, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout
    assert "# pass 0" not in done.stdout


async def test_it_keeps_the_contract_and_ends_at_sigterm(tmp_path: Path) -> None:
    with typescript_service(tmp_path / "node.log") as service:
        verdicts = await check_reward(service.until_listening())
        assert [(verdict.check, verdict.seen) for verdict in verdicts if verdict.outcome != "PASS"] == []
        assert service.end() == 0, service.output()
        assert service.said("stopped")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prot", "1"], 2, "usage: npm start"),
        (["--port", "many"], 2, "--port: must be 0 to 65535, got many"),
        (["--coordinator", "127.0.0.1:PORT"], 2, "--coordinator: must be HOST:PORT, got 127.0.0.1:PORT"),
        (["--bind", "192.0.2.1"], 1, "cannot listen on 192.0.2.1:0"),
    ],
)
def test_bad_arguments_end_it_with_one_message(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    with typescript_service(tmp_path / "node.log", *arguments) as service:
        assert service.process.wait(30) == code
    assert says in service.output()


def test_without_the_protos_it_says_where_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_PROTOS", os.fspath(tmp_path / "nowhere"))
    with typescript_service(tmp_path / "node.log") as service:
        assert service.process.wait(30) == 1
    assert "nowhere is not there: set SLUICE_PROTOS" in service.output()
