"""Memory for staged copies: shared memory of this machine that has no name, which other processes map instead of copying.

    new ──bytes arrive, are verified──▶ lent (lending.py): others map it, read only ──reclaimed──▶ written again

Whoever is lent a copy may rely on its bytes: nobody writes while any other process has it mapped, and the kernel lets nobody
shorten it or map it for writing. The memory is a memfd, so it takes nothing of /dev/shm's size, and it is gone with the last
process that has it, also after kill -9. Behind the bytes, in a page of its own, stands the digest of the bytes.

Linux; elsewhere `new` gives ordinary memory, which cannot be lent.
"""

import contextlib
import fcntl
import mmap
import os
import weakref
from typing import Self

import numpy as np

from sluice.errors import TransferError

_NAME = "sluice-weights"
"""What /proc/PID/maps calls the memory."""

_FUTURE_WRITE = 0x10
"""F_SEAL_FUTURE_WRITE (Linux 5.1): no further mapping may write. Python 3.12 has no name for it."""

_DIGEST_BYTES = 256
"""Longest digest that is recorded, of which BLAKE3's 64 hex digits are a quarter."""


class Memory(mmap.mmap):
    """One mapping of a staged copy; the mapping and its descriptor last as long as any array of its bytes."""

    fd: int
    token: str | None
    """By which others may borrow the copy; None while the copy is not lent."""
    withdraw: "weakref.finalize[..., Memory] | None"
    """Ends the announcement of the copy; None while the copy is not announced."""

    @classmethod
    def over(cls, fd: int, *, total_bytes: int, writable: bool) -> Self:
        """Maps `fd`, which belongs to the mapping from now on, also after an OSError."""
        try:
            access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            memory = cls(fd, _size(total_bytes), mmap.MAP_SHARED, access)
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(memory, os.close, fd).atexit = False
        memory.fd, memory.token, memory.withdraw = fd, None, None
        return memory

    def array(self, total_bytes: int) -> np.ndarray:
        """uint8[total_bytes], which keeps the mapping."""
        return np.frombuffer(self, np.uint8)[:total_bytes]

    @property
    def digest(self) -> str:
        """The recorded digest; empty while the bytes are being written."""
        return self[-_DIGEST_BYTES:].rstrip(b"\0").decode("ascii", "replace")

    @digest.setter
    def digest(self, digest: str) -> None:
        record = digest.encode("ascii")
        assert len(record) <= _DIGEST_BYTES
        self[-_DIGEST_BYTES:] = record.ljust(_DIGEST_BYTES, b"\0")


def new(total_bytes: int) -> np.ndarray:
    """uint8[total_bytes] of zeros to be written by this process, in memory that can be lent. Raises OSError."""
    if not hasattr(os, "memfd_create"):
        return np.zeros(total_bytes, np.uint8)
    fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _size(total_bytes))
    except OSError:
        os.close(fd)
        raise
    memory = Memory.over(fd, total_bytes=total_bytes, writable=True)
    _seal(fd)
    return memory.array(total_bytes)


def memory_of(buffer: np.ndarray) -> Memory | None:
    """The mapping of which `buffer` is all of the bytes; None for other memory, and for a part."""
    owner: object = buffer
    while not isinstance(owner, Memory):
        if isinstance(owner, np.ndarray):
            owner = owner.base
        elif isinstance(owner, memoryview):
            owner = owner.obj
        else:
            return None
    whole = np.frombuffer(owner, np.uint8)
    is_whole = buffer.ctypes.data == whole.ctypes.data and _size(buffer.nbytes) == whole.nbytes
    return owner if is_whole else None


def staged(buffer: np.ndarray) -> np.ndarray:
    """The bytes in memory that can be lent: `buffer` itself, or a copy."""
    if memory_of(buffer) is not None:
        return buffer
    copy = new(buffer.nbytes)
    copy[:] = buffer
    return copy


def reclaim(buffer: np.ndarray) -> bool:
    """Whether this process may write into `buffer` again, which is lent to nobody from now on.

    False while another process still has the copy mapped, and for a copy that belongs to another process.
    """
    if not buffer.flags.writeable:
        return False
    memory = memory_of(buffer)
    if memory is None:
        return True
    memory.token = None
    if memory.withdraw is not None:
        memory.withdraw()
        memory.withdraw = None
    try:
        # Every borrower's descriptor holds a shared lock (lending.py), which the kernel drops when the borrower dies.
        fcntl.flock(memory.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(memory.fd, fcntl.LOCK_UN)
    memory.digest = ""
    return True


def map_borrowed(fd: int, *, total_bytes: int, digest: str) -> np.ndarray:
    """uint8[total_bytes], read only, of a copy that another process lends; `fd` belongs to the array from now on.

    Raises TransferError unless the memory is a whole staged copy with this digest that nobody can shorten.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        size_bytes = os.fstat(fd).st_size
    except OSError:  # no memfd
        seals = size_bytes = 0
    fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    if seals & fixed != fixed or size_bytes != _size(total_bytes):
        os.close(fd)
        raise TransferError(
            f"a staged copy of {total_bytes} bytes is lent as memory of {size_bytes} bytes with the seals {seals:#x}; the "
            "process that lends it holds another model, or is another program"
        )
    memory = Memory.over(fd, total_bytes=total_bytes, writable=False)
    if memory.digest != digest:
        raise TransferError(
            f"the digest beside a staged copy is {memory.digest[:16] or 'empty'}..., announced was {digest[:16]}...; the "
            "process that lends it holds another version"
        )
    return memory.array(total_bytes)


def _seal(fd: int) -> None:
    """The size never changes, and whoever opens the memory can only read."""
    os.fchmod(fd, 0o400)
    fixed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    with contextlib.suppress(OSError):  # an older kernel
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FUTURE_WRITE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fixed | fcntl.F_SEAL_SEAL)


def _size(total_bytes: int) -> int:
    """The bytes in whole pages, and one page for the digest."""
    return -(-total_bytes // mmap.PAGESIZE) * mmap.PAGESIZE + mmap.PAGESIZE
