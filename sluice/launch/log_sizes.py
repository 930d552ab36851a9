"""The logs of a run's processes, kept under a size.

A process writes into its log through a descriptor that it holds for life, so a log cannot be renamed under it: the log is
copied to NAME.log.1, over the one before, and emptied. What a process writes between the two is lost: less than a millisecond
of a log that nobody has read in days.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path

from sluice.clock import Clock
from sluice.process.output import former_of

LOOK_EVERY_S = 30.0
"""How often a log may be found too large: a process that writes 1 MB/s is over by 30 MB then."""


async def keep_small(folder: Path, *, most_bytes: int, clock: Clock) -> None:
    """Turns over every log in `folder` that has grown over `most_bytes`, until cancelled."""
    while True:
        await asyncio.to_thread(_turn_over_all, folder, most_bytes)
        await clock.sleep(LOOK_EVERY_S)


def _turn_over_all(folder: Path, most_bytes: int) -> None:
    for path in sorted(folder.glob("*.log")):
        try:
            turn_over(path, most_bytes=most_bytes)
        except OSError as error:  # a disk that is full or away must not end a run for the sake of its logs
            sys.stderr.write(f"warning: {path} has outgrown run.file_max_bytes and stays as it is: {error}\n")


def turn_over(path: Path, *, most_bytes: int) -> None:
    """Moves what a log says to PATH.1 when the log has more than `most_bytes`. Raises OSError, with the log as it was."""
    if path.stat().st_size <= most_bytes:
        return
    former = former_of(path)
    partial = former.with_name(former.name + ".partial")
    try:
        shutil.copyfile(path, partial)
        shutil.copymode(path, partial)
        os.replace(partial, former)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    os.truncate(path, 0)  # the processes append, so they go on at the new end
