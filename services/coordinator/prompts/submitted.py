"""RUN/submitted.jsonl: the prompts that users submit, by number, without the prompts in memory.

A cursor in Redis names a prompt by its number, so lines are only appended. A line torn by a kill has no number: no caller was
told of it. In memory is the place of every MARK_EVERY-th line.
"""

import json
from array import array
from pathlib import Path

from sluice.run_dir.json_lines import JsonObject

SUBMITTED_FILE = "submitted.jsonl"
MARK_EVERY = 256
"""Lines that are passed over for one that is asked for out of order, at most: less than a millisecond."""


class SubmittedPrompts:
    """The file's rows. Another part appends; `follow` counts what was appended."""

    def __init__(self, path: Path) -> None:
        """Reads the file once. Raises ValueError for a line of JSON that is no object."""
        self._path = path
        self._marks = array("Q")
        self._count = self._end = 0
        self._next = (0, 0)
        """Number and place of the line behind the one that was read last."""
        self.follow()

    def __len__(self) -> int:
        return self._count

    def follow(self) -> None:
        """Counts the lines behind those that are counted."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            while line := file.readline():
                if _row(line, self._path) is not None:
                    if self._count % MARK_EVERY == 0:
                        self._marks.append(self._end)
                    self._count += 1
                self._end += len(line)

    def row(self, number: int) -> JsonObject:
        """Row `number`, which must be less than the count."""
        assert 0 <= number < self._count, number
        mark = number // MARK_EVERY
        at, place = mark * MARK_EVERY, self._marks[mark]
        if at <= self._next[0] <= number:
            at, place = self._next
        with self._path.open("rb") as file:
            file.seek(place)
            while True:
                row = _row(file.readline(), self._path)
                if row is None:
                    continue
                if at == number:
                    self._next = (number + 1, file.tell())
                    return row
                at += 1


def _row(line: bytes, path: Path) -> JsonObject | None:
    """The row in a line; None for a blank or torn one."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a line must be a JSON object, got {type(value).__name__}")
    return value
