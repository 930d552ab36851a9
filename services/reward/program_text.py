"""Finds the program in a completion. Text in, text out; verifiers/code.py runs the program.

Models write a program, then often an example of its input, its output or its use in a block of the same kind. So the program
is not simply the last block, but the last block of those that look most like the program that was asked for.
"""

import ast
import re
import textwrap
from typing import Final

from services.reward.final_answers import after_thought

_BLOCK = re.compile(r"(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n`]*\n(.*?)(?:\1|\Z)", re.DOTALL)
"""A fenced block: the fence, the language, the content. The last block of a completion may lack its closing fence."""
_PYTHON: Final = frozenset({"python", "python3", "py", "py3", "python2", "pypy", "pypy3", "ipython"})
_READS = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0|\bfileinput\b|\bos\.read\b")
_PRINTS = re.compile(r"\bprint\b|\bstdout\b|\bos\.write\b")


def find_program(text: str, *, function: str | None) -> str | None:
    """The program of a completion; None without a fenced block. Thoughts hold no program.

    With `function` the program defines that function, or a class Solution; without it the program reads and prints. Blocks
    that say that they are Python go before blocks that say nothing, and these before blocks in another language.
    """
    blocks = [(match[2].lower(), textwrap.dedent(match[3])) for match in _BLOCK.finditer(after_thought(text))]
    if not blocks:
        return None
    likeness = [(_rank(language), *_likeness(program, function)) for language, program in blocks]
    best = max(likeness)
    return blocks[max(index for index, one in enumerate(likeness) if one == best)][1]


def _rank(language: str) -> int:
    return 2 if language in _PYTHON else 0 if language else 1


def _likeness(program: str, function: str | None) -> tuple[bool, ...]:
    """How much a block looks like the program that was asked for; compared as a tuple."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ast raises all four for text that is no program
        tree = None
    if function is None:
        return (bool(_PRINTS.search(program)), tree is not None, bool(_READS.search(program)))
    names = {function, "Solution"}
    if tree is None:
        return (
            bool(re.search(rf"^\s*(?:def|class)\s+(?:{re.escape(function)}|Solution)\b", program, re.MULTILINE)),
            False,
        )
    return (any(_defines(node, names) for node in tree.body), True)


def _defines(node: ast.stmt, names: set[str]) -> bool:
    """Whether a statement of the module defines one of the names, by `def`, `class`, `=` or an import."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return node.name in names
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id in names for target in node.targets)
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any((alias.asname or alias.name) in names for alias in node.names)
    return False
