"""Names of histories of weights, and which versions a rollback has given up.

A version is (lineage, number). The first lineage is "a". A fresh lineage begins after every rollback, and where a restored
learner does not repeat its steps exactly: otherwise two sets of weights would carry one version. One file of the run
directory keeps every lineage that was minted, so that no name is used twice.
"""

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sluice.run_dir.durable import sync
from sluice.run_dir.full_disk import BLOCK_BYTES, is_full, located

FIRST = "a"

LINEAGES_FILE = "lineages"
"""The name of the file in the run directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """From version `to` on history goes on as `lineage`; versions behind `to` of older lineages are given up."""

    to: int
    lineage: str


def is_given_up(lineage: str, number: int, rollbacks: Iterable[Rollback]) -> bool:
    """Whether one of the rollbacks has given up this version."""
    return any(number > rollback.to and is_older(lineage, rollback.lineage) for rollback in rollbacks)


def lineage_from(lineage: str, rollbacks: Iterable[Rollback]) -> str:
    """The lineage for a learner that was restored to a version of `lineage`: at least the lineage of the last rollback."""
    return max((lineage, *(rollback.lineage for rollback in rollbacks)), key=_age)


def is_older(lineage: str, other: str) -> bool:
    """Whether `lineage` was minted before `other`."""
    return _age(lineage) < _age(other)


class LineageBook:
    """The lineages of one run, in a file with one name a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mint(self) -> str:
        """A name that no history of this run has; the name is on disk when `mint` returns. Raises OSError, NoRoom for a full
        disk: then nobody gets the name."""
        is_new = not self._path.exists()
        try:
            with self._path.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # learner and coordinator may mint at the same time
                file.seek(0)
                fresh = _after(max((FIRST, *file.read().split()), key=_age))
                file.write(f"\n{fresh}\n")  # a line torn by a kill stays alone
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync(self._path.parent)
        except OSError as error:
            if not is_full(error):
                raise
            raise located(error, self._path.parent, BLOCK_BYTES) from error
        return fresh


def _age(name: str) -> tuple[int, str]:
    """A sort key that keeps the order of minting: z before aa."""
    return len(name), name


def _after(name: str) -> str:
    """a -> b, z -> aa, az -> ba."""
    head, last = name[:-1], name[-1]
    if last != "z":
        return head + chr(ord(last) + 1)
    return (_after(head) if head else "a") + "a"
