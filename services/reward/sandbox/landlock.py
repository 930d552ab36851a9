"""Landlock: the files that this process and all that it starts may read or write, where no mount namespace is permitted.

Landlock forbids to open, make, move and remove files beneath all other paths, and from its 6th version on to send
signals out. Landlock does not hide that a path exists: `stat` and `readlink` answer. Kernel:
Documentation/userspace-api/landlock.rst.
"""

import ctypes
import os
import sys
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on every processor
_GET_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_READING = _EXECUTE | _READ | _READ_DIR
_TRUNCATE = 1 << 14
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | 1 << 15
_RIGHTS = {3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights on files by the version that brought the last of them."""
_LEAST_VERSION = 3
"""Older versions (Linux before 6.2) let a program empty any file."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """The version of the kernel's Landlock; 0 where there is none that keeps files from being written."""
    if sys.platform != "linux":
        return 0
    found = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
    return found if found >= _LEAST_VERSION else 0


def restrict(*, readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Permits these paths alone, for good; paths that are not there are passed over. False where Landlock cannot be had.

    Needs no_new_privs (privileges.py) and a process with one thread.
    """
    found = version()
    if not found:
        return False
    libc = ctypes.CDLL(None)
    every = _RIGHTS[5 if found >= 5 else 3]
    ruleset = _Ruleset(every, 3 if found >= 4 else 0, 3 if found >= 6 else 0)
    size = 24 if found >= 6 else 16 if found >= 4 else 8
    handle = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    if handle < 0:
        return False
    try:
        granted = [(path, _READING) for path in readable] + [(path, every) for path in writable]
        if not all(_grant(libc, handle, path, rights) for path, rights in granted if os.path.exists(path)):
            return False
        return libc.syscall(_RESTRICT_SELF, handle, 0) == 0
    finally:
        os.close(handle)


def _grant(libc: ctypes.CDLL, handle: int, path: str, rights: int) -> bool:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        return libc.syscall(_ADD_RULE, handle, _PATH_BENEATH, ctypes.byref(_Beneath(rights, place)), 0) == 0
    finally:
        os.close(place)
