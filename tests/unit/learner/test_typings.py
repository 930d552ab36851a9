"""The stub of transformers, which the type check reads instead of the library, says nothing that the library has not."""

import ast
from pathlib import Path

import transformers

STUB = Path(__file__).parents[3] / "typings/transformers/__init__.pyi"


def test_the_library_has_every_class_and_method_of_the_stub() -> None:
    classes = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)]
    assert len(classes) >= 4
    for stub in classes:
        real = getattr(transformers, stub.name)
        methods = [node.name for node in stub.body if isinstance(node, ast.FunctionDef)]
        missing = [name for name in methods if name != "__getattr__" and not hasattr(real, name)]
        assert not missing, f"transformers.{stub.name} has no {', '.join(missing)}"
