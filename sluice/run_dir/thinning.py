"""Keeps a file of JSON lines under a size, however long the run: what is new stays whole, what is old gets sparse.

A file that has outgrown its size is replaced by one of at most half of it. The newest quarter of the size stays as it is.
Before it, of the lines with a `step`, those of every second step stay, or of every fourth, eighth and so on, as few as needed.
Lines without a step (evaluations, rollbacks) stay; of evaluations every second and so on only where they alone are too many.

The places that stay depend on the number alone, so thinning again keeps a part of what is there, and a file cut off by a kill
before it got its name changes nothing. Readers need not know: a reader that has the file open reads on in the former one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sluice.run_dir.durable import write_synced

_MOST_HALVINGS = 40
"""Steps are counted in 64 bits at most; after so many halvings only step 0 is left."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which older lines stay: multiples of 2 ** `steps`, and of 2 ** `versions`."""

    steps: int
    versions: int = 0

    def keeps(self, line: bytes) -> bool:
        """Whether the line stays; a torn line does not."""
        try:
            value = json.loads(line)
        except ValueError:
            return False
        if not isinstance(value, dict):
            return True  # not a line of ours: the reader names it
        for name, halvings in (("step", self.steps), ("version", self.versions)):
            if isinstance(number := value.get(name), int):
                return number % (1 << halvings) == 0
        return True


def thin(path: Path, *, most_bytes: int) -> bool:
    """Thins the file if it has more than `most_bytes`; returns whether it had. Nobody may append meanwhile. Raises OSError."""
    size = path.stat().st_size
    if size <= most_bytes:
        return False
    with path.open("rb") as file:
        whole_from = _line_at(file, size - most_bytes // 4, size)
        rule = _rule(file, whole_from, most_bytes // 2 - (size - whole_from))
        write_synced(path, _pieces(file, whole_from, rule))
    return True


def _rule(file: BinaryIO, end: int, room_bytes: int) -> _Rule:
    """The rule that keeps most and still fits: one reading, whatever the number of halvings."""
    by_step, by_version, others = [0] * (_MOST_HALVINGS + 1), [0] * (_MOST_HALVINGS + 1), 0
    for line in _lines(file, end):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        known = value if isinstance(value, dict) else {}
        if isinstance(number := known.get("step"), int):
            by_step[_halvings(number)] += len(line)
        elif isinstance(number := known.get("version"), int):
            by_version[_halvings(number)] += len(line)
        else:
            others += len(line)
    rules = [_Rule(steps) for steps in range(1, _MOST_HALVINGS + 1)]
    rules += [_Rule(_MOST_HALVINGS, versions) for versions in range(1, _MOST_HALVINGS + 1)]
    for rule in rules:
        if sum(by_step[rule.steps :]) + sum(by_version[rule.versions :]) + others <= room_bytes:
            return rule
    return rules[-1]


def _halvings(number: int) -> int:
    """How often the number can be halved without a rest."""
    return min(_MOST_HALVINGS, (number & -number).bit_length() - 1) if number else _MOST_HALVINGS


def _pieces(file: BinaryIO, whole_from: int, rule: _Rule) -> Iterator[bytes]:
    yield from (line for line in _lines(file, whole_from) if rule.keeps(line))
    file.seek(whole_from)
    while piece := file.read(1 << 20):
        yield piece


def _lines(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines before `end`, where a line begins."""
    file.seek(0)
    position = 0
    while position < end and (line := file.readline()):
        position += len(line)
        yield line


def _line_at(file: BinaryIO, position: int, size: int) -> int:
    """Where the first line behind `position` begins, or else the last line of the file."""
    file.seek(position)
    file.readline()
    if file.tell() < size:
        return file.tell()
    begins = ends = 0
    for line in _lines(file, size):
        begins, ends = ends, ends + len(line)
    return begins
