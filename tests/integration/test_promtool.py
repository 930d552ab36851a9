"""Prometheus's own tool reads its configuration, runs the tests of the alert rules and parses every query of the dashboard."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.needs import promtool as installed_promtool
from tests.promql import PROMETHEUS, panel_queries
from tests.security_cases import make_folder

pytestmark = [pytest.mark.integration, pytest.mark.needs("promtool")]


def promtool(*arguments: str) -> str:
    """What it says; fails with that when it finds a fault."""
    program = installed_promtool()
    assert program is not None
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("file", "kind"), [("prometheus.yml", "tokens"), ("prometheus-tls.yml", "certs")])
def test_the_configuration_is_one_and_names_the_files_that_a_runs_credentials_have(
    tmp_path: Path, file: str, kind: str
) -> None:
    folder = make_folder(tmp_path / "creds", kind) / "metrics"
    text = (PROMETHEUS / file).read_text(encoding="utf-8")
    text = text.replace("/credentials/", f"{folder}/").replace("rules.yml", str(PROMETHEUS / "rules.yml"))
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert "is valid prometheus config" in promtool("check", "config", str(tmp_path / file))


def test_every_illness_raises_its_own_alert_and_a_healthy_run_none() -> None:
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    queries = sorted(set(panel_queries()))
    recorded = [{"record": f"panel:query_{place}", "expr": query} for place, query in enumerate(queries)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}), encoding="utf-8")
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(file))
