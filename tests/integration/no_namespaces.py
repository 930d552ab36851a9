"""`python no_namespaces.py ARGUMENTS`: Python, on a kernel that permits no namespaces, as in a container of Docker.

A seccomp filter answers EPERM to unshare.
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


class _Program(ctypes.Structure):
    """struct sock_fprog of <linux/filter.h>."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def main() -> None:
    """See above."""
    instructions = b"".join(
        struct.pack("HBBI", *one)
        for one in (
            (0x20, 0, 0, 0),  # load the number of the call
            (0x15, 0, 1, _UNSHARE),  # is it unshare?
            (0x06, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(4, instructions)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
