"""Names of histories of weights, and which versions were given up by a rollback.

A version is (lineage, number). The lineage is "a" at first; a fresh one where a restored learner does not repeat itself
exactly, since two sets of weights would carry one version else, and after every rollback. All that were ever minted
stand in one file of the run directory, so that no name is used twice.
"""

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FIRST = "a"

LINEAGES_FILE = "lineages"
"""In the run directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """From there on history goes on as `lineage`: what older lineages made of version `to` is given up."""

    to: int
    lineage: str


def is_given_up(lineage: str, number: int, rollbacks: Iterable[Rollback]) -> bool:
    """Whether this version is of a history that a rollback has ended."""
    return any(number > rollback.to and is_older(lineage, rollback.lineage) for rollback in rollbacks)


def lineage_from(lineage: str, rollbacks: Iterable[Rollback]) -> str:
    """The lineage under which a learner goes on that was restored to a version of `lineage`: never one before a rollback."""
    return max((lineage, *(rollback.lineage for rollback in rollbacks)), key=_age)


def is_older(lineage: str, other: str) -> bool:
    """Whether `lineage` was minted before `other`."""
    return _age(lineage) < _age(other)


class LineageBook:
    """The lineages of one run, in a file of one name a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mint(self) -> str:
        """A name that no history of this run has; it is on disk when this returns. Raises OSError."""
        with self._path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # learner and coordinator may both want one
            file.seek(0)
            fresh = _after(max((FIRST, *file.read().split()), key=_age))
            file.write(f"\n{fresh}\n")  # a line torn by a kill stays alone
            file.flush()
            os.fsync(file.fileno())
        return fresh


def _age(name: str) -> tuple[int, str]:
    """Sorts as they are minted: z before aa."""
    return len(name), name


def _after(name: str) -> str:
    """a -> b, z -> aa, az -> ba."""
    head, last = name[:-1], name[-1]
    if last != "z":
        return head + chr(ord(last) + 1)
    return (_after(head) if head else "a") + "a"
