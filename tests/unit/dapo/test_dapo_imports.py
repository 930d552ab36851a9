"""`sluice.dapo` stays usable where there is no torch and knows nothing of the wire."""

import ast
from pathlib import Path

import sluice.dapo

ROOM = Path(sluice.dapo.__file__).parent
PURE = {"collections", "dataclasses", "enum", "math", "typing", "numpy", "sluice.dapo"}
WITH_TORCH = {name: {"torch"} for name in ("loss.py", "trust_region.py", "soft_gate.py", "correction.py")}


def test_only_losses_and_correction_import_torch_and_nothing_imports_the_outside_world() -> None:
    for path in ROOM.glob("*.py"):
        assert _imported(path) <= PURE | WITH_TORCH.get(path.name, set()), path.name


def _imported(path: Path) -> set[str]:
    """Top-level packages that a module imports, and rooms of `sluice`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {_top(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(_top(node.module or "."))
    return names


def _top(module: str) -> str:
    first, *rest = module.split(".")
    return ".".join([first, *rest[:1]]) if first == "sluice" else first
