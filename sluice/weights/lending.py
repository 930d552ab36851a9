"""A staged copy lent to other processes of the same user and machine: they get a descriptor of the memory, not the bytes.

    lend(copy, digest) ──▶ a place, told to the engine's own workers     borrow(place)    the copy, or an error
    announce(copy, digest)                                               find(digest)     anybody's copy of these bytes, or None

Holders answer on Unix sockets without a file (abstract ones): those are gone with their process, and only processes of the same
network namespace can reach them. So whoever can borrow is on this machine, whatever labels say. A holder answers processes of
its own user alone, and its place only those that know the place's token; an announced copy is found under its digest.
/proc/PID/fd would not do: services hide theirs (sluice/process/child.py).

 who waits     for what                                     unblocked by
 the borrower  the holder's answer, which takes no copying  the holder's thread, its death, ANSWER_S
 the thread    the next borrower; a borrower's token        a borrower; TOKEN_S
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import select
import socket
import struct
import threading
import weakref

import numpy as np
import structlog

from sluice.errors import TransferError
from sluice.own_host import own_host
from sluice.weights import staging

log = structlog.get_logger(__name__)

ANSWER_S = 5.0
"""Chosen: an answer takes less than a millisecond, on a machine that is not overloaded."""

TOKEN_S = 1.0
"""What a holder waits for a borrower's token; below ANSWER_S, so that one who says nothing uses up nobody else's patience."""

_PLACE = re.compile(r"(sluice-[0-9a-f]{32}):([0-9a-f]{32})", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOKEN_BYTES = 32
_ANNOUNCED = "0" * _TOKEN_BYTES
"""Said in place of a token where a copy was found under its digest."""

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


def reach() -> str:
    """A name for the processes that can borrow from each other: those of one kernel, network namespace and user.

    Empty where the system tells of no namespaces.
    """
    try:
        namespace = os.stat("/proc/self/ns/net")
    except OSError:
        return ""
    parts = (own_host(), namespace.st_dev, namespace.st_ino, os.geteuid())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def lend(buffer: np.ndarray, *, digest: str) -> str:
    """Lends verified bytes, all of a `staging.new` or of a borrowed copy; returns the place from which others borrow.

    From now on nobody writes into `buffer` before `staging.reclaim` has allowed it.
    """
    return _lender().lend(_recorded(buffer, digest))


def announce(buffer: np.ndarray, *, digest: str) -> None:
    """Lends verified bytes as `lend` does, to whoever looks for their digest; BLAKE3 in hex, of names and bytes.

    Does nothing where another process of this machine has announced the same bytes, and where memory cannot be lent.
    """
    if _DIGEST.fullmatch(digest) and staging.memory_of(buffer) is not None:
        _lender().announce(_recorded(buffer, digest), digest)


def borrow(place: str, *, total_bytes: int, digest: str) -> np.ndarray:
    """uint8[total_bytes], read only: the copy that is lent at `place`. The copy stays as it is while the array exists.

    Raises TransferError when the holder has ended, lends the copy no longer or another one, or is out of reach.
    """
    found = _PLACE.fullmatch(place)
    if found is None:
        raise TransferError(f"a lent copy's place must be NAME:TOKEN as its holder tells it, got {place[:80]!r}")
    return staging.map_borrowed(_ask(*found.groups()), total_bytes=total_bytes, digest=digest)


def find(digest: str, *, total_bytes: int) -> np.ndarray | None:
    """As `borrow`, from any process that has announced these bytes; None where no process has, or its copy cannot be had."""
    if not _DIGEST.fullmatch(digest):
        return None
    try:
        copy = staging.map_borrowed(_ask(_name_of(digest), _ANNOUNCED), total_bytes=total_bytes, digest=digest)
    except _NoHolder:
        return None
    except TransferError as error:
        log.warning("staged_copy_not_shared", reason=str(error), then="its bytes are received instead")
        return None
    log.info("staged_copy_shared", digest=digest[:16], size_bytes=total_bytes)
    return copy


class _NoHolder(TransferError):
    """Nobody listens under a name."""


def _recorded(buffer: np.ndarray, digest: str) -> staging.Memory:
    memory = staging.memory_of(buffer)
    assert memory is not None, "only staged memory can be lent"
    if memory.digest != digest:
        memory.digest = digest
    return memory


def _name_of(digest: str) -> str:
    return f"sluice-copy-{os.geteuid()}-{digest}"


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
        raise (_NoHolder if isinstance(error, ConnectionRefusedError) else TransferError)(
            f"a staged copy cannot be borrowed: its holder does not answer ({error}); it has ended, or is on another machine "
            "or in another container"
        ) from error
    if not descriptors:
        raise TransferError("a staged copy cannot be borrowed: its holder has gone on to another version")
    return descriptors[0]


class _Lender:
    """The sockets of this process, and the thread that answers."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._name = f"sluice-{secrets.token_hex(16)}"
        self._lent: weakref.WeakValueDictionary[str, staging.Memory] = weakref.WeakValueDictionary()
        """By token; lent copies whose holder has dropped them are gone."""
        self._listening: dict[int, tuple[socket.socket, str]] = {}
        """By descriptor: a socket, and the token of the copy that is announced there; empty: of any place."""
        self._ready = select.epoll()
        self._listen(self._name, "")
        threading.Thread(target=self._run, name="lend-copies", daemon=True).start()

    def lend(self, memory: staging.Memory) -> str:
        token = memory.token = memory.token or secrets.token_hex(_TOKEN_BYTES // 2)
        self._lent[token] = memory
        return f"{self._name}:{token}"

    def announce(self, memory: staging.Memory, digest: str) -> None:
        if memory.withdraw is not None:
            return
        self.lend(memory)
        assert memory.token is not None
        with contextlib.suppress(OSError):  # another process has announced these bytes
            memory.withdraw = weakref.finalize(memory, self._close, self._listen(_name_of(digest), memory.token))
            memory.withdraw.atexit = False

    def _listen(self, name: str, token: str) -> int:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind("\0" + name)
        except OSError:
            listening.close()
            raise
        listening.setblocking(False)
        listening.listen()
        self._listening[listening.fileno()] = (listening, token)
        self._ready.register(listening, select.EPOLLIN)
        return listening.fileno()

    def _close(self, descriptor: int) -> None:
        listening, _ = self._listening.pop(descriptor)
        listening.close()  # which also ends epoll's interest

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._ready.poll():
                listening, token = self._listening.get(descriptor, (None, ""))
                try:
                    if listening is not None:
                        self._answer(listening.accept()[0], token)
                except OSError as error:  # the borrower is gone, or silent; it is told by the closed connection
                    log.info("staged_copy_not_lent", reason=str(error))

    def _answer(self, connection: socket.socket, announced: str) -> None:
        with connection:
            connection.settimeout(TOKEN_S)
            if not _is_own_user(connection):
                log.warning("staged_copy_not_lent", reason="a process of another user asked")
                return
            asked = connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL).decode("ascii", "replace")
            token = announced if asked == _ANNOUNCED else asked
            if (memory := self._lent.get(token)) is None:
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
