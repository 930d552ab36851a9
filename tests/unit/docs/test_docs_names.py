"""What the documentation names exists: settings, metrics, files, links, and the code in it is code."""

import ast
import re
from pathlib import Path

import pytest

from sluice.config.problems import schema_keys
from sluice.config.schema import Config
from sluice.config.yaml_text import parse_yaml
from sluice.telemetry.catalogue import NAMES
from tests.unit.docs.pages import PAGES, ROOT, blocks, in_backticks, prose

KEYS = set(schema_keys())
DOTTED = re.compile(r"[a-z_0-9]+(\.[a-z_0-9]+)+")
ROOMS = {name.partition("/")[0] for name in NAMES}
FOLDERS = ("sluice", "services", "docs", "tests", "recipes", "scripts", "protos", "benchmarks", "requirements")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE_SUFFIXES = ("yaml", "json", "jsonl", "md", "py", "png", "parquet", "safetensors", "groups")

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def flat(tree: dict, prefix: str = "") -> set[str]:
    """Dotted keys of the sections and settings in a YAML tree; below a mapping of the user's own nothing is a key."""
    found: set[str] = set()
    for name, value in tree.items():
        found.add(prefix + name)
        if isinstance(value, dict) and prefix + name not in ("reward.routes", "eval.sets", "environments"):
            found |= flat(value, f"{prefix}{name}.")
    return found


@by_page
def test_settings_in_backticks_are_keys_of_the_schema(page: Path) -> None:
    names = [re.split(r"[=:]", text)[0] for text in in_backticks(page)]
    dotted = {name for name in names if DOTTED.fullmatch(name) and name.partition(".")[0] in Config.model_fields}
    assert {name for name in dotted if name.rpartition(".")[2] not in FILE_SUFFIXES} <= KEYS


@by_page
def test_metrics_in_backticks_are_in_the_catalogue(page: Path) -> None:
    for name in in_backticks(page):
        room, slash, rest = name.partition("/")
        if slash and room in ROOMS and re.fullmatch(r"[a-z0-9_*]+", rest):
            assert any(re.fullmatch(name.replace("*", ".*"), known) for known in NAMES), name


@by_page
def test_files_in_backticks_exist(page: Path) -> None:
    named = [name for name in in_backticks(page) if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    patterns = [name.removesuffix("/") for name in named if " " not in name and not re.search(r"[A-Z]{3,}", name)]
    assert [name for name in patterns if not list(ROOT.glob(name))] == []


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@by_page
def test_yaml_in_a_page_has_keys_of_the_schema(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert flat(parse_yaml(block, where=page.name)) <= KEYS


@by_page
def test_python_in_a_page_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)
