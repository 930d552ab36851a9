"""Code of a user's that a recipe names, `file.py:name` or `module:name`, looked for without running any of it.

Modules are located, files are parsed. A name that does not show in a file's text, because the file makes it in another way,
counts as present; the service that imports the code has the last word.
"""

import ast
import difflib
import importlib.machinery
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_MOST_FILES = 5_000
"""How many files the search for a similar name looks at."""


def problem_of(where: str, name: str, *, what: str, methods: Sequence[str] = ()) -> str | None:
    """What is wrong with `where:name`, with the nearest that exists, as seen from the working directory; None: it is there.

    `what` it is, for people. A class must have the `methods`, unless it may have them of another class.
    """
    if where.endswith(".py"):
        path = Path(where)
        return _name_problem(path, name, what, methods) if path.is_file() else _no_file(path)
    origin = _locate(where)
    if origin is None:
        return module_problem(where)
    return _name_problem(origin, name, what, methods) if origin.suffix == ".py" else None


def module_problem(module: str) -> str | None:
    """Says that a dotted module is missing; None: it is there."""
    if _locate(module) is not None:
        return None
    return f"no module {module} is found, neither in {Path.cwd()} nor on PYTHONPATH or installed"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The nearest known name as a question, or nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _no_file(path: Path) -> str:
    """Says that `path` is missing, with similar paths in its folder, or below the working directory without that folder."""
    folder = path.parent if path.parent.is_dir() else Path()
    there = [str(found) for found in itertools.islice(_python_files(folder), _MOST_FILES)]
    moved = [found for found in there if Path(found).name == path.name]
    hint = f"; did you mean {moved[0]}?" if moved else did_you_mean(str(path), there)
    hint = hint or "; give its path from the folder in which the run is started"
    return f"{path} is not a file (looked for {path.absolute()}){hint}"


def _python_files(folder: Path) -> Iterator[Path]:
    """The Python files of a folder, then the files in its subfolders; hidden folders are passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))


def _name_problem(path: Path, name: str, what: str, methods: Sequence[str]) -> str | None:
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path} cannot be read as Python: {error}"
    names = set(_bound(tree.body))
    if not {name, "*", "__getattr__"} & names:
        return f"{path} has no {what} {name!r}{did_you_mean(name, sorted(names))}"
    whole = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name]
    whole = [one for one in whole if not (one.bases or one.keywords or one.decorator_list)]
    missing = [method for one in whole for method in methods if method not in set(_bound(one.body))]
    return f"{path}: class {name!r} has no method `{missing[0]}`; it needs {_listed(methods)}" if missing else None


def _listed(methods: Sequence[str]) -> str:
    return " and ".join(f"`{method}`" for method in methods)


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module's statements bind, also within conditions and loops; `*` for the names of `from module import *`."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.alias):
                yield node.asname or node.name.partition(".")[0]


def _locate(module: str) -> Path | None:
    """Where a dotted module's code is, as `python -m` finds it: in the working directory first. None: nowhere."""
    path: list[str] | None = None
    spec = None
    for name in itertools.accumulate(module.split("."), "{}.{}".format):
        # Asks by the module's last part: the full name would import the parents, which a folder without __init__.py lacks.
        last = name.rpartition(".")[2]
        spec = importlib.machinery.PathFinder.find_spec(last, [os.getcwd(), *sys.path] if path is None else path)
        # Packages that were installed in place have finders of their own.
        spec = spec or next(filter(None, (finder.find_spec(name, path) for finder in sys.meta_path)), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or ())
    assert spec is not None
    return Path(spec.origin or "")
