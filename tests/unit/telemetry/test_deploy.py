"""Rules and dashboard under deploy/ agree with the catalogue, with each other and with the page that explains them."""

import itertools
import re

import pytest
import yaml

from scripts import dashboard
from sluice.telemetry.catalogue import CATALOGUE
from tests.promql import DASHBOARD, PROMETHEUS, metrics_in, panel_queries, panels, rules
from tests.unit.docs.pages import ROOT

MONITORING = ROOT / "docs" / "monitoring.md"


def test_the_dashboard_is_what_its_script_writes():
    assert DASHBOARD.read_text(encoding="utf-8") == dashboard.render()


@pytest.mark.parametrize("query", sorted({*panel_queries(), *(rule["expr"] for rule in rules())}))
def test_a_query_names_only_metrics_of_the_catalogue(query):
    assert metrics_in(query) or query.startswith("up{")


def test_a_name_that_is_not_in_the_catalogue_is_noticed():
    with pytest.raises(KeyError):
        metrics_in("rate(sluice_reward_timeouts_total[5m])")


def test_every_metric_of_the_catalogue_is_on_the_dashboard():
    shown = set().union(*map(metrics_in, panel_queries()))
    assert [metric.name for metric in CATALOGUE if metric not in shown] == []


def test_panels_say_what_they_show_and_do_not_overlap():
    taken = set()
    for panel in panels():
        assert panel["title"]
        assert panel["description"] or panel["title"] == "Answering"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_figures_of_a_step_are_taken_from_one_of_the_two_services_that_show_them():
    for query in [*panel_queries(), *(rule["expr"] for rule in rules())]:
        for metric in metrics_in(query):
            if metric.source == "learner":
                name = metric.prometheus_name
                assert len(re.findall(rf'{name}\{{service="coordinator"\}}', query)) == query.count(name), query


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_its_line_in_the_docs_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "docs"}
    page, _, anchor = said["docs"].partition("#")
    assert ROOT / page == MONITORING
    line = next(line for line in MONITORING.read_text(encoding="utf-8").splitlines() if f'<a id="{anchor}">' in line)
    assert f"`{rule['alert']}`" in line


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_seen_firing_in_the_rules_own_tests(rule):
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    samples = [sample for case in cases for test in case.get("promql_expr_test", []) for sample in test["exp_samples"]]
    assert f'{{alertname="{rule["alert"]}"}}' in [sample["labels"] for sample in samples]


def test_what_the_compose_file_mounts_is_there():
    services = yaml.safe_load((ROOT / "deploy" / "docker-compose.metrics.yml").read_text(encoding="utf-8"))["services"]
    mounts = [volume.split(":") for service in services.values() for volume in service["volumes"]]
    folders = [source for source, *_ in mounts if source.startswith("./")]
    assert len(folders) == 3
    assert [source for source in folders if not (ROOT / source).is_dir()] == []
    ports = [port for service in services.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
