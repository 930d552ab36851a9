"""A staged copy lent to other processes of the same user and machine: they get a descriptor of the memory, not the bytes.

    holder   lend(copy, digest) ──▶ a place, told over gRPC or to the engine's workers
    borrower borrow(place)      ──▶ asks the holder's socket, gets a read-only descriptor, maps it

The socket has no file (an abstract Unix socket): it is gone with its process, and only processes of the same network
namespace can reach it, so whoever can borrow is on this machine, whatever labels say. The holder answers processes of its own
user that know the place's token. /proc/PID/fd would not do: services hide theirs (sluice/process/child.py).

 who waits     for what                                     unblocked by
 the borrower  the holder's answer, which takes no copying  the holder's thread, its death, ANSWER_S
 the thread    the next borrower; a borrower's token        a borrower; ANSWER_S
"""

import fcntl
import os
import re
import secrets
import socket
import struct
import threading
import weakref

import numpy as np
import structlog

from sluice.errors import TransferError
from sluice.weights import staging

log = structlog.get_logger(__name__)

ANSWER_S = 10.0
"""Chosen: an answer takes less than a millisecond, on a machine that is not overloaded."""

_PLACE = re.compile(r"(sluice-[0-9a-f]{32}):([0-9a-f]{32})", re.ASCII)
_TOKEN_BYTES = 32
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


def lend(buffer: np.ndarray, *, digest: str) -> str:
    """Lends verified bytes, all of a `staging.new` or of a borrowed copy; returns the place from which others borrow.

    From now on nobody writes into `buffer` before `staging.reclaim` has allowed it.
    """
    memory = staging.memory_of(buffer)
    assert memory is not None, "only staged memory can be lent"
    if memory.digest != digest:
        memory.digest = digest
    return _lender().add(memory)


def borrow(place: str, *, total_bytes: int, digest: str) -> np.ndarray:
    """uint8[total_bytes], read only: the copy that is lent at `place`. The copy stays as it is while the array exists.

    Raises TransferError when the holder has ended, lends the copy no longer or another one, or is out of reach.
    """
    found = _PLACE.fullmatch(place)
    if found is None:
        raise TransferError(f"a lent copy's place must be NAME:TOKEN as its holder tells it, got {place[:80]!r}")
    return staging.map_borrowed(_ask(*found.groups()), total_bytes=total_bytes, digest=digest)


def _ask(name: str, token: str) -> int:
    """A descriptor from the holder."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect("\0" + name)
            if not _is_own_user(connection):
                raise TransferError("a staged copy is lent by a process of another user; it is not borrowed")
            connection.sendall(token.encode())
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise TransferError(
            f"a staged copy cannot be borrowed: its holder does not answer ({error}); it has ended, or is on another machine "
            "or in another container"
        ) from error
    if not descriptors:
        raise TransferError("a staged copy cannot be borrowed: its holder has gone on to another version")
    return descriptors[0]


class _Lender:
    """The socket of this process, and the thread that answers."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._name = f"sluice-{secrets.token_hex(16)}"
        self._memories: weakref.WeakValueDictionary[str, staging.Memory] = weakref.WeakValueDictionary()
        """By token; lent copies whose holder has dropped them are gone."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind("\0" + self._name)
        self._socket.listen()
        threading.Thread(target=self._run, name="weights-lend", daemon=True).start()

    def add(self, memory: staging.Memory) -> str:
        memory.token = memory.token or secrets.token_hex(_TOKEN_BYTES // 2)
        self._memories[memory.token] = memory
        return f"{self._name}:{memory.token}"

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                try:
                    connection.settimeout(ANSWER_S)
                    self._answer(connection)
                except OSError as error:  # the borrower is gone, or silent; it is told by the closed connection
                    log.info("weights_not_lent", reason=str(error))

    def _answer(self, connection: socket.socket) -> None:
        if not _is_own_user(connection):
            log.warning("weights_not_lent", reason="a process of another user asked")
            return
        token = connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL).decode("ascii", "replace")
        memory = self._memories.get(token)
        if memory is None:
            return
        # A descriptor of its own, so that the lock on it lasts exactly as long as the borrower has the memory.
        descriptor = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if memory.token == token:  # not reclaimed before the lock
                socket.send_fds(connection, [b"."], [descriptor])
        finally:
            os.close(descriptor)


_lock = threading.Lock()
_made: _Lender | None = None


def _lender() -> _Lender:
    """The one of this process, which a process forked from here does not have."""
    global _made
    with _lock:
        if _made is None or _made.process != os.getpid():
            _made = _Lender()
        return _made


def _is_own_user(connection: socket.socket) -> bool:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] == os.geteuid()
