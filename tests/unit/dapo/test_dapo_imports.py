"""`sluice.dapo` stays usable where there is no torch and knows nothing of the wire."""

import ast
from pathlib import Path

import sluice.dapo

ROOM = Path(sluice.dapo.__file__).parent
PURE = {"collections", "dataclasses", "enum", "typing", "numpy"}
WITH_TORCH = {"loss.py": {"torch"}, "correction.py": {"torch", "sluice"}}


def test_only_loss_and_correction_import_torch_and_nothing_imports_the_outside_world() -> None:
    for path in ROOM.glob("*.py"):
        assert _imported(path) <= PURE | WITH_TORCH.get(path.name, set()), path.name


def _imported(path: Path) -> set[str]:
    """Top-level packages that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").split(".")[0])
    return names
