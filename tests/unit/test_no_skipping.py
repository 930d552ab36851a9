"""No test is skipped: what a machine lacks is a need, which leaves the test out and is named (tests/needs.py)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

WAYS = {"skip", "skipif", "importorskip", "skipIf", "skipUnless", "skipTest", "SkipTest", "xfail"}
OWNERS = {"pytest", "pytest.mark", "mark", "unittest", "self"}


def ways_to_skip(source: str) -> Iterator[str]:
    """Where a file skips, with its line."""
    if not any(way in source for way in WAYS):
        return  # parsing takes most of the time
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in WAYS and ast.unparse(node.value) in OWNERS:
            yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and node.module in OWNERS:
            yield from (f"{node.lineno}: imports {alias.name}" for alias in node.names if alias.name in WAYS)


def test_no_test_file_skips() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 200
    found = {str(path.relative_to(TESTS)): list(ways_to_skip(path.read_text(encoding="utf-8"))) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "pytest.skip('no tool')",
        "@pytest.mark.skipif(True, reason='')\ndef test_it(): ...",
        "needs_it = pytest.mark.skip",
        "library = pytest.importorskip('library')",
        "from pytest import importorskip",
        "@mark.xfail\ndef test_it(): ...",
        "raise unittest.SkipTest",
    ],
)
def test_a_skip_is_found(source: str) -> None:
    assert list(ways_to_skip(source))


@pytest.mark.parametrize(
    "source", ["clock.skip(3600)", "x = 1  # fmt: skip", "@pytest.mark.needs('promtool')\ndef f(): ..."]
)
def test_other_skips_are_left_alone(source: str) -> None:
    assert not list(ways_to_skip(source))
