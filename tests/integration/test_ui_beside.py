"""`run.ui: true`: the page of a run that begins, a process of its own that ends with the run."""

import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from sluice.cli.ui import beside
from sluice.config.load import dump_config
from sluice.run_dir.naming import ADDRESS_FILE
from sluice.testing import assert_eventually_blocking
from tests.integration.coordinator_cases import small_config

pytestmark = pytest.mark.integration


def test_the_address_is_said_first_answers_when_the_run_is_up_and_ends_with_the_run(tmp_path: Path) -> None:
    run_dir, lines = tmp_path / "run", list[str]()
    config = small_config(tmp_path / "model", run__ui=True)
    before = set(psutil.Process().children(recursive=True))
    with beside(config, run_dir, lines.append):
        address = lines[0].removeprefix("the run's page: ")
        assert address.startswith("http://127.0.0.1:")
        run_dir.mkdir()
        (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        (run_dir / ADDRESS_FILE).write_text("127.0.0.1:9", encoding="utf-8")
        assert_eventually_blocking(lambda: answers(f"{address}overview"), within_s=120)
        assert (run_dir / "logs" / "ui.log").exists()
    assert not answers(f"{address}overview")
    assert set(psutil.Process().children(recursive=True)) <= before
    with beside(small_config(tmp_path / "model"), run_dir, lines.append):
        assert len(lines) == 1


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status == 200
    except (urllib.error.URLError, TimeoutError):
        return False
