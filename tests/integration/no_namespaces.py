"""`python no_namespaces.py [--no-landlock] ARGUMENTS`: Python, on a kernel that permits no namespaces, as in Docker.

A seccomp filter answers EPERM to unshare, and with --no-landlock ENOSYS to Landlock too.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38  # <linux/prctl.h>
_SECCOMP_MODE_FILTER = 2
_UNSHARE = {"x86_64": 272, "aarch64": 97}[platform.machine()]
_LANDLOCK_CREATE_RULESET = 444


class _Program(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def main() -> None:
    """See above."""
    arguments = sys.argv[1:]
    refused = {_UNSHARE: errno.EPERM}
    if arguments[0] == "--no-landlock":
        refused[_LANDLOCK_CREATE_RULESET] = errno.ENOSYS
        del arguments[0]
    program = [(0x20, 0, 0, 0)]  # load the number of the call
    for number, error in refused.items():
        program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error)]  # is it this one? SECCOMP_RET_ERRNO
    program.append((0x06, 0, 0, 0x7FFF0000))  # SECCOMP_RET_ALLOW
    instructions = b"".join(struct.pack("HBBI", *one) for one in program)
    libc = ctypes.CDLL(None, use_errno=True)
    filter_ = _Program(len(program), instructions)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main()
