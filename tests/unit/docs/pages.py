"""The pages written by hand or made, and the parts of Markdown that the tests look at."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for found, body in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def in_backticks(page: Path) -> list[str]:
    """What stands in single backticks outside of fenced blocks."""
    return _INLINE.findall(prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """Command lines in shell blocks and in backticks, as words, without comments and leading VAR=VALUE.

    A program and one word in backticks (`sluice up`) is not a command line, it only mentions a command.
    """
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    inline = [text for text in in_backticks(page) if text.startswith(("sluice ", "python ", "make "))]
    lines += [text for text in inline if len(text.split()) > 2 or text.startswith("make ")]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if words:
            yield words
