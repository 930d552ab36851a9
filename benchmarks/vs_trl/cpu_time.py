"""CPU seconds of a process and all that it started, from /proc (Linux)."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(root: int) -> float:
    """User and system time of process `root` and its living descendants, with what their ended children used.

    A process that ended is counted once its parent has reaped it. Sessions do not matter, only who started whom.
    """
    stats = {stat.pid: stat for stat in map(_stat, Path("/proc").glob("[0-9]*")) if stat is not None}
    tree, grown = {root}, 0
    while len(tree) > grown:
        grown = len(tree)
        tree |= {stat.pid for stat in stats.values() if stat.parent in tree}
    return sum(stats[pid].ticks for pid in tree if pid in stats) / _TICKS_PER_S


class _Stat:
    """What is used of /proc/PID/stat."""

    def __init__(self, text: str) -> None:
        name_end = text.rindex(")")  # the name may hold blanks and brackets
        fields = text[name_end + 2 :].split()
        self.pid, self.parent = int(text[: text.index(" ")]), int(fields[1])
        self.ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime


def _stat(folder: Path) -> _Stat | None:
    try:
        return _Stat((folder / "stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended meanwhile
