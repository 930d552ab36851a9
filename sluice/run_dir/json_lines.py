"""Reads a file of one JSON object a line that may have been cut off by a killed writer.

A writer killed in the middle of a line leaves a torn line; a restarted writer may have appended right behind the tear.
Torn lines are counted, never guessed at. The file is read once; nothing here follows a file that grows.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JsonObject = dict[str, Any]
"""An object as `json` decodes it; the reader of a particular file turns such objects into types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLines:
    """The objects of one file, in the order of its lines."""

    objects: tuple[JsonObject, ...]
    torn_lines: int
    """Lines that are not JSON: at most one for each time the writer was killed."""


def read_json_lines(path: Path) -> JsonLines:
    """Every object in `path`; an absent file reads as an empty one, since a run may end before its first line.

    Raises:
        ValueError: a line is valid JSON but not an object, so the file is not of the expected kind.
    """
    found = list(json_lines(path))
    objects = tuple(value for value in found if value is not None)
    return JsonLines(objects=objects, torn_lines=len(found) - len(objects))


def json_lines(path: Path) -> Iterator[JsonObject | None]:
    """The same line by line, None for a torn line: for files that need not fit into memory. Raises as `read_json_lines`."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):  # a file opened for bytes ends lines at b"\n" alone
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            # JSONDecodeError, UnicodeDecodeError where a character was cut in two, and a line of brackets
            except (ValueError, RecursionError):
                yield None
                continue
            if not isinstance(value, dict):
                raise ValueError(f"{path}:{number}: must be a JSON object, got {type(value).__name__}")
            yield value
