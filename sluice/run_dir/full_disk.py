"""A full disk is a wait: a writer that finds no room tries again until there is room, and one line says where and how much.

 who waits   for what           unblocked by
 a writer    room on its disk   whoever frees space or raises the quota; the writer looks again after 0.5, 1, 2, 4, 5, 5 ... s
There is no deadline: the run stands meanwhile, and ends trained once there is room. A process that has to leave gives up.
Other errors of a disk are raised.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from sluice.clock import Clock
from sluice.errors import DiskFull
from sluice.run_dir.private import open_private

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Chosen: short enough that a run goes on at once, long enough that a wait of hours costs nothing."""

BLOCK_BYTES = 4096
"""What a file, a folder or a name needs at least on most file systems."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEXTS = tuple(map(os.strerror, _FULL))


class NoRoom(OSError):
    """A disk, or this user's part of the disk, has no room for a write."""

    def __init__(self, folder: Path, needed_bytes: int, *, code: int = errno.ENOSPC) -> None:
        self.folder, self.needed_bytes = folder, max(needed_bytes, BLOCK_BYTES)
        super().__init__(code, no_room_line(folder, self.needed_bytes, code=code), str(folder))

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskWait:
    """Writers that wait for room in one folder."""

    folder: Path
    needed_bytes: int
    """The largest of their writes."""
    since_s: float
    """How long the first of them has waited, in seconds."""
    code: int = errno.ENOSPC
    """ENOSPC, or EDQUOT for a quota."""

    def __str__(self) -> str:
        return no_room_line(self.folder, self.needed_bytes, code=self.code)


class DiskWaits:
    """The writers of one process that wait for room.

    `tell` gets an event's name and one line, when a wait begins or ends. `folder` is named where an error names none.
    """

    def __init__(self, *, clock: Clock, tell: Callable[[str, str], None] | None = None, folder: Path = Path()) -> None:
        self._clock, self.tell, self._folder = clock, tell or _log, folder
        self._waiting: dict[Path, list[_Waiting]] = {}
        self._given_up = False
        self._pauses: set[asyncio.Future[None]] = set()

    def now(self) -> list[DiskWait]:
        """The present waits, one a folder. Safe from any thread."""
        now_s = self._clock.now()
        return [
            DiskWait(
                folder=folder,
                needed_bytes=max(each.needed_bytes for each in waiting),
                since_s=now_s - min(each.since_s for each in waiting),
                code=waiting[0].code,
            )
            for folder, together in list(self._waiting.items())
            if (waiting := list(together))
        ]

    async def write(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking `write`, which is called again, from its beginning, for as long as it finds no room."""
        return await self.until(lambda: asyncio.to_thread(write, *args, **kwargs))

    def write_blocking(self, write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for a thread without an event loop."""
        return asyncio.run(self.write(write, *args, **kwargs))

    async def until(self, attempt: Callable[[], Awaitable[T]], *, folder: Path | None = None) -> T:
        """The result of `attempt`, repeated while `attempt` raises what `is_full` knows.

        `folder` is named where the error itself names none. Raises DiskFull after `give_up`.
        """
        waiting, pause_s = _Waiting(since_s=self._clock.now()), FIRST_PAUSE_S
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    return await attempt()
                except Exception as error:
                    if not is_full(error):
                        raise
                    waiting.needed_bytes, waiting.code = needed_by(error), _code(error)
                    if pause_s == FIRST_PAUSE_S:
                        stack.enter_context(self._noted(waiting, folder_of(error) or folder or self._folder))
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def give_up(self) -> None:
        """Ends the waits of a process that has to leave: its writers get DiskFull, those to come get it at once."""
        self._given_up = True
        for pause in self._pauses:
            pause.set_result(None)
        self._pauses.clear()

    async def _pause(self, seconds: float) -> None:
        """Lets the time pass. Raises DiskFull after `give_up`."""
        if not self._given_up:
            cut_short: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._pauses.add(cut_short)
            sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
            try:
                await asyncio.wait([sleeping, cut_short], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleeping.cancel()
                self._pauses.discard(cut_short)
        if self._given_up:
            raise DiskFull("; ".join(map(str, self.now())))

    async def longer_than(self, limit_s: float) -> str:
        """Returns the line of a writer that waits, looking every `limit_s`: for callers who must not wait along."""
        while True:
            await self._clock.sleep(limit_s)
            for wait in self.now():
                return str(wait)

    @contextlib.contextmanager
    def _noted(self, waiting: "_Waiting", folder: Path) -> Iterator[None]:
        """Counts a writer among those that wait; tells when the first one of a folder begins and the last one ends."""
        together = self._waiting.setdefault(folder, [])
        together.append(waiting)
        if len(together) == 1:
            self.tell("disk_full", no_room_line(folder, waiting.needed_bytes, code=waiting.code))
        try:
            yield
        finally:
            together.remove(waiting)
            if not together:
                del self._waiting[folder]
                self.tell("disk_has_room", f"{folder} was written to after {self._clock.now() - waiting.since_s:.0f} s")


@dataclass(kw_only=True, slots=True, eq=False)
class _Waiting:
    """One writer."""

    since_s: float
    needed_bytes: int = BLOCK_BYTES
    code: int = errno.ENOSPC


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up; libraries that are no Python keep only the text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return isinstance(error, DiskFull) or any(text in str(error) for text in _TEXTS)


def located(error: Exception, folder: Path, needed_bytes: int) -> Exception:
    """The error; for a full disk NoRoom, because libraries name neither folder nor bytes."""
    return NoRoom(folder, needed_bytes, code=_code(error)) if is_full(error) else error


def folder_of(error: BaseException) -> Path | None:
    """The folder in which a write found no room, where the error knows."""
    known = _known(error)
    if isinstance(known, NoRoom):
        return known.folder
    return Path(os.fsdecode(known.filename)).parent if known is not None and known.filename else None


def needed_by(error: BaseException) -> int:
    """The bytes that a write needed, where the error knows; else the least that a write needs."""
    known = _known(error)
    return known.needed_bytes if isinstance(known, NoRoom) else BLOCK_BYTES


def _code(error: BaseException) -> int:
    known = _known(error)
    return known.errno or errno.ENOSPC if known is not None else errno.ENOSPC


def _known(error: BaseException | None) -> OSError | None:
    """The OSError itself, or the one behind an error that was raised from it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def no_room_line(folder: Path, needed_bytes: int, *, code: int = errno.ENOSPC) -> str:
    """What to tell people: the folder, the bytes, the fix."""
    try:
        free = f"{free_bytes(folder)} are free"
    except OSError:
        free = "how many are free is unknown"
    return (
        f"the disk under {folder} is full ({os.strerror(code)}): {needed_bytes} bytes are needed, {free}; free space there, "
        "everything else goes on by itself"
    )


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write under `folder`, but for quotas. Blocking; raises OSError."""
    facts = os.statvfs(_existing(folder))
    return (facts.f_bfree if os.geteuid() == 0 else facts.f_bavail) * facts.f_frsize


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises NoRoom where less is free. Cheap, but knows nothing of quotas. Blocking; raises OSError."""
    if free_bytes(folder) < needed_bytes:
        raise NoRoom(folder, needed_bytes)


def prove_room(folder: Path, needed_bytes: int) -> None:
    """Raises NoRoom unless so much can really be written: writes a file and removes it. Blocking; raises OSError."""
    check_room(folder, needed_bytes)
    probe = _existing(folder) / f".room-{os.getpid()}"
    try:
        with open_private(probe, "wb", buffering=0) as file:
            left = memoryview(os.urandom(needed_bytes))  # zeros take no room where files are compressed
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
    except OSError as error:
        if not is_full(error):
            raise
        raise NoRoom(folder, needed_bytes, code=error.errno or errno.ENOSPC) from None
    finally:
        probe.unlink(missing_ok=True)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there: both are on one disk."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _log(event: str, line: str) -> None:
    """Tells the log."""
    (log.error if event == "disk_full" else log.info)(event, reason=line)
