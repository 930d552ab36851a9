"""Prometheus's own tool reads its configuration, runs the tests of the alert rules and parses every query of the dashboard."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.needs import promtool as installed_promtool
from tests.promql import PROMETHEUS, panel_queries

pytestmark = [pytest.mark.integration, pytest.mark.needs("promtool")]


def promtool(*arguments: str) -> str:
    """What it says; fails with that when it finds a fault."""
    program = installed_promtool()
    assert program is not None
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_is_one() -> None:
    assert "is valid prometheus config" in promtool("check", "config", "prometheus.yml")


def test_every_illness_raises_its_own_alert_and_a_healthy_run_none() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    queries = sorted(set(panel_queries()))
    recorded = [{"record": f"panel:query_{place}", "expr": query} for place, query in enumerate(queries)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(file))
