"""python child.py PARENT SIGNAL UMASK COMMAND...: becomes COMMAND, and gets SIGNAL (a number) when process PARENT dies.

So even `kill -9` of a launcher leaves no process behind. Linux only: elsewhere this program only becomes COMMAND.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def armed(signum: int, *, umask: int = -1) -> list[str]:
    """The words to put before a command, so that the command's process gets `signum` when this process dies.

    `umask` is for the files that the command makes; -1: as this process's.
    This file is run by its path and without site-packages: it needs the standard library alone and costs 10 ms.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signum)), str(umask)]


def module_command(module: str, *flags: str) -> list[str]:
    """The words that run `module` in a Python of its own; `flags` are Python's.

    `-P` leaves the working directory out of the module path, so that no file or folder there stands for a module: neither
    `services` nor `torch.py`. Unlike PYTHONSAFEPATH, `-P` says nothing to the programs that the module starts.
    """
    return [sys.executable, "-P", *flags, "-m", module]


def hide() -> None:
    """Keeps the memory, environment and descriptors of this process from other processes of the same user; Linux only.

    The kernel then refuses ptrace, and /proc/PID belongs to root. A program that this process executes is seen again.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> None:
    """Sets the umask, arms the parent-death signal, then replaces this process."""
    parent, signum, umask = map(int, sys.argv[1:4])
    command = sys.argv[4:]
    if umask >= 0:
        os.umask(umask)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            sys.exit("sluice.process.child: the launcher is already gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
