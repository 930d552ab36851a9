"""Reads a file of one JSON object a line that may have been cut off by a killed writer.

A writer killed in the middle of a line leaves a torn line; a restarted writer may have appended right behind the tear.
Torn lines are counted, never guessed at. The file is read once; nothing here follows a file that grows.
"""

import json
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
    if not path.exists():
        return JsonLines(objects=(), torn_lines=0)
    objects: list[JsonObject] = []
    torn = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:  # JSONDecodeError, and UnicodeDecodeError where a character was cut in two
            torn += 1
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: must be a JSON object, got {type(value).__name__}")
        objects.append(value)
    return JsonLines(objects=tuple(objects), torn_lines=torn)
