"""python child.py PARENT SIGNAL COMMAND...: becomes COMMAND, and gets SIGNAL (a number) when process PARENT dies.

So even `kill -9` of a launcher leaves no process behind. Linux only: elsewhere this program only becomes COMMAND.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4


def armed(signum: int) -> list[str]:
    """The words to put before a command, so that the command's process gets `signum` when this process dies.

    This file is run by its path and without site-packages: it needs the standard library alone and costs 10 ms.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(signum))]


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
    """Arms the parent-death signal, then replaces this process."""
    parent, signum, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:
            sys.exit("sluice.launch.child: the launcher is already gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
