"""The last steps of a process before it runs a graded program: what it sees, may call and may do from then on.

With namespaces the program has a file system of its own (small_root.py); else Landlock keeps it from the files (landlock.py).
In both cases it loses its privileges (privileges.py) and the calls that lead out (syscalls.py).
"""

import os

from services.reward.sandbox import landlock, privileges, small_root, syscalls

PROMISES = frozenset({"files", "sockets", "other processes"})
"""What a program of a stranger must be kept from."""


def shut_in(entered: "set[str]", *, folder: str) -> "set[str]":
    """Shuts this process in for good, and returns which of PROMISES hold; the working directory is writable and empty.

    `entered` are the namespaces that `isolation.leave` gave; `folder` is any folder, below which the working directory lies.
    """
    own_root, own_processes = "mount" in entered and _own_root(folder), "process" in entered
    privileges.give_up()
    kept = set[str]()
    if own_root or landlock.restrict(readable=small_root.readable(), writable=[os.getcwd(), os.devnull]):
        kept.add("files")
    filtered = syscalls.forbid(own_processes=own_processes, own_root=own_root)
    if filtered or (own_root and "network" in entered):
        kept.add("sockets")
    if filtered or (own_processes and "ipc" in entered):
        kept.add("other processes")
    # Without the filter the modes and times of files can be changed past Landlock.
    return kept if filtered or own_root else kept - {"files"}


def _own_root(folder: str) -> bool:
    try:
        small_root.enter(folder)
    except (OSError, KeyError):  # KeyError: a processor whose numbers of calls are not known
        return False
    return True
