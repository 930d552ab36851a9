"""docs/metrics.md, the catalogue, the configuration and the places that show metrics agree with each other."""

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from sluice.config.schema import Config
from sluice.launch import view
from sluice.report import curves, summary
from sluice.telemetry.catalogue import CATALOGUE, NAMES
from sluice.telemetry.catalogue.metrics_page import render_markdown

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
IN_BACKTICKS = re.compile(r"`([^`]+)`")
ROOMS = "|".join(sorted({name.partition("/")[0] for name in NAMES}))
METRIC_NAME = re.compile(rf"[\"']((?:{ROOMS})/[a-z0-9_]+)[\"']")


def config_keys(model=Config, prefix=""):
    for name, field in model.model_fields.items():
        yield prefix + name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from config_keys(kind, f"{prefix}{name}.")


def test_the_page_is_what_the_catalogue_prints():
    assert PAGE.read_text(encoding="utf-8") == render_markdown()


def test_a_name_stands_once_in_the_catalogue():
    assert len(NAMES) == len(CATALOGUE)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_every_metric_says_what_it_means_what_is_healthy_and_what_to_do(metric):
    for text in (metric.unit, metric.meaning, metric.healthy, metric.action):
        assert text.strip(), metric.name
        assert "|" not in text, f"{metric.name}: a bar would break the table"


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_advice_names_only_metrics_and_settings_that_exist(metric):
    keys = set(config_keys())
    for name in IN_BACKTICKS.findall(f"{metric.meaning} {metric.healthy} {metric.action}"):
        if "/" in name:
            pattern = re.compile(re.escape(name).replace(r"\*", ".*"))
            assert any(pattern.fullmatch(known) for known in NAMES), name
        elif "." in name:
            assert name.partition(":")[0] in keys, name


@pytest.mark.parametrize("module", [view, curves, summary], ids=lambda module: module.__name__)
def test_only_metrics_of_the_catalogue_are_shown(module):
    shown = set(METRIC_NAME.findall(inspect.getsource(module)))
    assert shown, "the pattern finds none"
    assert shown <= NAMES
