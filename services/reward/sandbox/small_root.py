"""A file system for graded programs: the interpreter and the system's libraries, read-only, and an empty /tmp. No more.

Made in a mount namespace (isolation.py), as new mounts of old folders below a new root; what is not there cannot be read,
written or connected to: homes, keys, /etc, run directories, graders, sockets of Redis and Docker.
"""

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18  # <linux/mount.h>
_DETACH = 2
_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000  # Linux 5.12
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
_TMP_BYTES, _TMP_FILES = 64 << 20, 4096


def readable() -> "list[str]":
    """What a Python program needs to run: this interpreter with its packages, and the system's programs and libraries."""
    prefixes = (sys.base_prefix, sys.prefix)
    return sorted({*_SYSTEM, *prefixes, *map(os.path.realpath, prefixes)}, key=len)  # a folder before what is inside


def enter(place: str) -> None:
    """Makes the small root at `place`, any folder, and goes there; the old root is gone. Raises OSError.

    Needs a mount namespace of one's own with all rights on it, and for /proc a process namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _mount(libc, None, "/", None, _REC | _PRIVATE)
    _mount(libc, "tmpfs", place, "tmpfs", _NOSUID | _NODEV, f"mode=755,size={_TMP_BYTES},nr_inodes={_TMP_FILES}")
    try:
        _furnish(libc, place)
        os.chdir(place)
        _check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
        _check(libc.umount2(b".", _DETACH), "umount")
    except BaseException:
        libc.umount2(os.fsencode(place), _DETACH)
        raise
    os.chdir("/tmp")


def _furnish(libc: ctypes.CDLL, place: str) -> None:
    for path in (*readable(), *_DEVICES):
        _show(libc, place, path)
    for folder in ("tmp", "proc"):
        os.mkdir(f"{place}/{folder}")
    os.symlink("/tmp", f"{place}/dev/shm")  # the C library keeps semaphores of processes there
    os.symlink("/proc/self/fd", f"{place}/dev/fd")
    _set(libc, place, set_=_RDONLY | _NOSUID, flags=_AT_RECURSIVE)
    _mount(
        libc, "tmpfs", f"{place}/tmp", "tmpfs", _NOSUID | _NODEV, f"mode=777,size={_TMP_BYTES},nr_inodes={_TMP_FILES}"
    )
    # Where an engine for containers has covered parts of /proc, no second one is permitted: then /proc is empty.
    libc.mount(b"proc", os.fsencode(f"{place}/proc"), b"proc", _NOSUID | _NODEV | _NOEXEC, None)


def make_read_only(*, writable: Iterable[str], hidden: Iterable[str]) -> bool:
    """Makes all files of this mount namespace read-only but for folders that are `writable`, and empties what is `hidden`.

    For graders, which need their own files and packages. False where that cannot be had; then nothing holds.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = [path for path in dict.fromkeys(map(os.path.realpath, writable)) if os.path.isdir(path)]
    try:
        _mount(libc, None, "/", None, _REC | _PRIVATE)
        for path in kept:
            _mount(libc, path, path, None, _BIND | _REC)
        for path in hidden:
            if os.path.isdir(path):
                _mount(libc, "tmpfs", path, "tmpfs", _NOSUID | _NODEV, "mode=500,size=4096")
            elif os.path.exists(path):
                _mount(libc, os.devnull, path, None, _BIND)
        _set(libc, "/", set_=_RDONLY | _NOSUID, flags=_AT_RECURSIVE)
        for path in kept:
            _set(libc, path, clear=_RDONLY)
        os.chdir(os.getcwd())  # the folder of now: that of before lies below the new mounts
    except OSError:
        return False
    return True


def show_own_processes() -> None:
    """Has /proc show the processes of this process namespace alone, where a second /proc is permitted."""
    ctypes.CDLL(None).mount(b"proc", b"/proc", b"proc", _NOSUID | _NODEV | _NOEXEC, None)


def _show(libc: ctypes.CDLL, place: str, path: str) -> None:
    """Mounts `path` at the same path below `place`; a link is made anew, and what is missing is passed over."""
    if not os.path.lexists(path) or os.path.lexists(place + path):
        return
    os.makedirs(os.path.dirname(place + path), exist_ok=True)
    if os.path.islink(path) and os.path.isdir(path):  # /bin -> usr/bin
        os.symlink(os.readlink(path), place + path)
        return
    path_there = os.path.realpath(path)
    if os.path.isdir(path_there):
        os.mkdir(place + path)
    else:
        os.close(os.open(place + path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(libc, path_there, place + path, None, _BIND | _REC)


def _set(libc: ctypes.CDLL, path: str, *, set_: int = 0, clear: int = 0, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(set_, clear, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    made = libc.syscall(_MOUNT_SETATTR, -100, os.fsencode(path), flags, ctypes.byref(attributes), size)
    _check(made, "mount_setattr")


def _mount(
    libc: ctypes.CDLL, what: "str | None", where: str, kind: "str | None", flags: int, options: "str | None" = None
) -> None:
    words: Sequence[bytes | None] = [
        None if word is None else os.fsencode(word) for word in (what, where, kind, options)
    ]
    _check(libc.mount(words[0], words[1], words[2], flags, words[3]), f"mount {where}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
