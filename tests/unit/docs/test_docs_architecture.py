"""Every function that docs/architecture.md names is in the file that the page names."""

import ast
import re

from tests.unit.docs.pages import ROOT

_PLACE = re.compile(r"`([\w/]+\.py)`: `([\w.]+)`")


def places() -> list[tuple[str, str]]:
    """(file, function, class or Class.method)."""
    return _PLACE.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def defined_in(path: str) -> set[str]:
    """Names of the functions and classes of a module, and of the methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = (part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{part.name}" for part in inside}
    return names


def test_every_function_on_the_page_exists_in_its_file() -> None:
    found = places()
    assert len(found) > 15
    assert [(path, name) for path, name in found if name not in defined_in(path)] == []
