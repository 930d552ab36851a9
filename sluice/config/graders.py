"""Whether the graders that a recipe names exist, found out before anything is started.

A grader is a built-in name, a dotted module, `file.py:function` or `module:function`. No code of a grader is run: modules
are located, files are parsed. A function that does not show in a file's text, because the file makes the function in
another way, counts as present; the reward service imports the file and has the last word.
"""

import ast
import difflib
import importlib.machinery
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sluice.config.schema import Config
from sluice.errors import ConfigError

BUILT_IN_GRADERS = (
    *("mixadd3", "math_dapo", "math_verify", "gsm8k", "exact", "numeric", "multiple_choice", "format", "code"),
    *("judge", "reasoning_gym"),
)
"""The modules of services/reward/verifiers."""

_MOST_FILES = 5_000
"""How many files the search for a similar name looks at."""


def check_graders(config: Config) -> None:
    """Raises ConfigError with a line for each grader of reward.routes that is missing as seen from the working directory."""
    problems: list[str] = []
    for data_source, graders in config.reward.routes.items():
        for place, one in enumerate(graders):
            if problem := grader_problem(one.grader):
                which = f"[{place}]" if len(graders) > 1 else ""
                problems.append(f"reward.routes.{data_source}{which}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))


def grader_problem(grader: str) -> str | None:
    """What is wrong with a grader's name, with the nearest name that exists; None when the grader was found."""
    if grader in BUILT_IN_GRADERS:
        return None
    where, colon, function = grader.rpartition(":")
    if not colon and grader.endswith(".py"):
        return f"{grader} needs a function: `{grader}:compute_score`"
    if (colon and not (where and function.isidentifier())) or (not colon and "." not in grader):
        return (
            f"must be one of {', '.join(BUILT_IN_GRADERS)}, a dotted module name, `file.py:function` or "
            f"`module:function`, got {grader!r}{_did_you_mean(grader, BUILT_IN_GRADERS)}"
        )
    if where.endswith(".py"):
        path = Path(where)
        return _function_problem(path, function) if path.is_file() else _no_file(path)
    origin = _locate(where if colon else grader)
    if origin is None:
        return (
            f"no module {where if colon else grader} is found, neither in {Path.cwd()} nor on PYTHONPATH or installed"
        )
    return _function_problem(origin, function) if colon and origin.suffix == ".py" else None


def _no_file(path: Path) -> str:
    """Says that `path` is missing, with similar paths in its folder, or below the working directory without that folder."""
    folder = path.parent if path.parent.is_dir() else Path()
    there = [str(found) for found in itertools.islice(_python_files(folder), _MOST_FILES)]
    moved = [found for found in there if Path(found).name == path.name]
    hint = f"; did you mean {moved[0]}?" if moved else _did_you_mean(str(path), there)
    return f"{path} is not a file (looked for {path.absolute()}){hint}"


def _python_files(folder: Path) -> Iterator[Path]:
    """The Python files of a folder, then the files in its subfolders; hidden folders are passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))


def _function_problem(path: Path, function: str) -> str | None:
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path} cannot be read as Python: {error}"
    names = set(_bound(tree.body))
    if function in names or "*" in names or "__getattr__" in names:
        return None
    return f"{path} has no function {function!r}{_did_you_mean(function, sorted(names))}"


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


def _did_you_mean(name: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
