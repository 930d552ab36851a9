"""`python ordinary_user.py ARGUMENTS`: Python as a user without any privilege, with the files of whoever called."""

import ctypes
import os
import sys

_CLONE_NEWUSER = 0x10000000  # <linux/sched.h>
NUMBER = 54321


def main() -> None:
    """In a user namespace that knows one number other than root's: executing a program there drops all privileges."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NUMBER} {uid} 1"), ("gid_map", f"{NUMBER} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
