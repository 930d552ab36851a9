"""What is built in has its row on the page that lists it."""

import importlib
import re
from dataclasses import fields

import pytest

from sluice.config.environments import BUILT_IN_ENVIRONMENTS
from sluice.config.graders import BUILT_IN_GRADERS
from sluice.ui.page import VIEWS
from tests.unit.docs.pages import ROOT


def section(page: str, heading: str) -> str:
    """The text of a section, its subsections left out."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.split(r"^#+ ", text.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def named_in_rows(text: str, *, cell: int) -> set[str]:
    """The names in backticks in one cell of every row of the section's tables."""
    rows = (line.split("|") for line in text.splitlines() if line.startswith("|"))
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row[cell])}


def test_every_built_in_grader_has_a_row() -> None:
    assert set(BUILT_IN_GRADERS) <= named_in_rows(section("rewards.md", "Built-in graders"), cell=1)


@pytest.mark.parametrize("grader", BUILT_IN_GRADERS)
def test_every_setting_of_a_grader_has_a_row(grader: str) -> None:
    settings = getattr(importlib.import_module(f"services.reward.verifiers.{grader}"), "Settings", None)
    names = set() if settings is None else {field.name for field in fields(settings)}
    assert names <= named_in_rows(section("rewards.md", "Built-in graders"), cell=2)


def test_every_built_in_environment_has_a_row() -> None:
    assert set(BUILT_IN_ENVIRONMENTS) <= named_in_rows(section("environments.md", "Built-in environments"), cell=1)


def test_every_view_has_a_row() -> None:
    rows = [
        line.split("|")[1].strip() for line in section("ui.md", "What each view answers").splitlines() if "|" in line
    ]
    assert [name for name in VIEWS.values() if name not in rows] == []
