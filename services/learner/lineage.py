"""Names of histories of weights: "a" at first, a fresh one when a restored learner does not repeat itself exactly.

A replayed step whose digest differs from the recorded one means that two sets of weights would carry one version. From
there on versions carry a new lineage. All that were ever minted stand in one file, so that no name is used twice.
"""

import os
from pathlib import Path

FIRST = "a"


class LineageBook:
    """The lineages of one run, in a file of one name a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mint(self) -> str:
        """A name that no history of this run has; it is on disk when this returns. Raises OSError."""
        known = self._path.read_text().split() if self._path.exists() else [FIRST]
        fresh = _after(known[-1])
        with self._path.open("w") as file:
            file.write("\n".join([*known, fresh]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return fresh


def _after(name: str) -> str:
    """a -> b, z -> aa, az -> ba."""
    head, last = name[:-1], name[-1]
    if last != "z":
        return head + chr(ord(last) + 1)
    return (_after(head) if head else "a") + "a"
