"""What deploy/ asks Prometheus for: the queries of rules and dashboard, and the catalogue's metrics that they name."""

import json
import re
from typing import Any

import yaml

from sluice.telemetry.catalogue import CATALOGUE
from sluice.telemetry.metric import Metric
from tests.unit.docs.pages import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "sluice.json"

_NAME = re.compile(r"sluice_[a-zA-Z0-9_]+")
_BY_NAME = {metric.prometheus_name: metric for metric in CATALOGUE}


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    text = (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, rows left out."""
    return [panel for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def panel_queries() -> list[str]:
    """The queries of all panels."""
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metrics_in(query: str) -> set[Metric]:
    """The metrics that a query names. Raises KeyError for one that is not in the catalogue."""
    return {_BY_NAME[name] for name in _NAME.findall(query)}
