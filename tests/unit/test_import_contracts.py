"""The import contracts of pyproject.toml refuse what they forbid: every such import is written into a copy of the source.

Made from the contracts themselves, so a new one is held too. import-linter runs as its own process, since it looks for
packages where Python does, and this process has those of the real tree.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, combinations, permutations, product
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
TIMEOUT_S = 120

Contract = dict[str, Any]
Arrow = tuple[str, str]
"""The module that imports, the module imported."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for package in ("sluice", "services"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="module")
def accepted(copy: Path) -> tuple[int, str]:
    """What is said of the source as it is."""
    return lint(copy)


@pytest.fixture(scope="module")
def refused(copy: Path, accepted: tuple[int, str]) -> tuple[int, str]:
    """What is said once every import that any contract forbids is written into the copy."""
    for importer, imported in chain(*map(forbidden_arrows, CONTRACTS)):
        with file_of(copy, importer).open("a", encoding="utf-8") as source:
            source.write(f"\nimport {imported}\n")
    return lint(copy)


def test_the_source_as_it_is_is_accepted(accepted: tuple[int, str]) -> None:
    code, output = accepted
    assert code == 0, output
    assert f"{len(CONTRACTS)} kept, 0 broken" in output


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_every_import_that_a_contract_forbids_is_refused(refused: tuple[int, str], contract: Contract) -> None:
    code, output = refused
    assert code != 0
    arrows = list(forbidden_arrows(contract))
    assert arrows
    told = complaints(output, contract["name"])
    assert [arrow for arrow in arrows if arrow not in told] == []


def lint(copy: Path) -> tuple[int, str]:
    """Exit code and report; wide, so that no line of the report is broken."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    done = subprocess.run(
        [*command, "--no-cache", "--no-logo"],
        cwd=copy,
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def complaints(output: str, name: str) -> set[Arrow]:
    """The single imports that the report of one broken contract names."""
    _, *sections = re.split(r"^(\S.*)\n-+\n", output.partition("Broken contracts\n")[2], flags=re.MULTILINE)
    reports = dict(zip(sections[::2], sections[1::2], strict=True))
    return set(re.findall(r"^- +(\S+) -> (\S+) \(l\..*\)$(?!\n +\S)", reports.get(name, ""), flags=re.MULTILINE))


def forbidden_arrows(contract: Contract) -> Iterator[Arrow]:
    """One import for each two rooms, and each direction, between which the contract allows none."""
    yield from _ARROWS_OF[contract["type"]](contract)


def _of_independence(contract: Contract) -> Iterable[Arrow]:
    return permutations(contract["modules"], 2)


def _of_forbidden(contract: Contract) -> Iterable[Arrow]:
    cut = [expression.partition(" -> ")[0] for expression in contract.get("ignore_imports", ())]
    importers = [one_module(source, without=cut) for source in contract["source_modules"]]
    return product(importers, map(one_module, contract["forbidden_modules"]))


def _of_layers(contract: Contract) -> Iterator[Arrow]:
    layers = [re.split(r"[|:]", layer) for layer in contract["layers"]]
    for container in contract["containers"]:
        rooms = [[f"{container}.{room.strip(' ()')}" for room in layer] for layer in layers]
        for upper, lower in combinations(rooms, 2):
            yield from product(lower, upper)
        for layer, text in zip(rooms, contract["layers"], strict=True):
            yield from permutations(layer, 2) if "|" in text else ()


_ARROWS_OF: dict[str, Callable[[Contract], Iterable[Arrow]]] = {
    "independence": _of_independence,
    "forbidden": _of_forbidden,
    "layers": _of_layers,
}


def one_module(expression: str, without: Iterable[str] = ()) -> str:
    """A module that an expression of import-linter stands for, and none of `without` does."""
    if "*" not in expression:
        return expression
    matches = (module for module in modules() if pattern(expression).fullmatch(module))
    return next(module for module in matches if not any(pattern(other).fullmatch(module) for other in without))


def pattern(expression: str) -> re.Pattern[str]:
    """`*` is one part of a dotted name, `**` one or more."""
    parts = {"*": r"[^.]+", "**": r".+"}
    return re.compile(r"\.".join(parts.get(part, re.escape(part)) for part in expression.split(".")))


def modules() -> list[str]:
    paths = [
        path.relative_to(ROOT).with_suffix("")
        for room in ("sluice", "services")
        for path in (ROOT / room).rglob("*.py")
    ]
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def file_of(copy: Path, module: str) -> Path:
    path = copy.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
