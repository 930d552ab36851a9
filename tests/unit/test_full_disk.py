"""A full disk is a wait: writers try again, one line names the folder and the bytes, nothing is left half written."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors

from sluice.errors import DiskFull, SluiceError, Unavailable
from sluice.lineage import LineageBook
from sluice.rpc.error_status import error_of, known, message_of, status_of, trailers_of
from sluice.run_dir import durable, full_disk
from sluice.run_dir.durable import append_line, append_lines, write_synced
from sluice.run_dir.full_disk import DiskWaits, NoRoom, check_room, folder_of, is_full, needed_by, prove_room
from sluice.testing import ManualClock


class FullFor:
    """A write that finds no room so many times."""

    def __init__(self, times: int, *, code: int = errno.ENOSPC) -> None:
        self.times, self.code, self.calls = times, code, 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.code, os.strerror(self.code), "/data/run/metrics.jsonl")
        return "written"


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_writer_waits_with_growing_pauses_and_tells_the_beginning_and_the_end_once(code: int) -> None:
    clock, told = ManualClock(), list[tuple[str, str]]()
    disk = DiskWaits(clock=clock, tell=lambda event, line: told.append((event, line)))
    write = FullFor(6, code=code)
    writing = asyncio.create_task(disk.until(write))
    await settle()
    calls = []
    for _ in range(18):
        await clock.advance(1.0)
        await settle()
        calls.append(write.calls)
    assert await asyncio.wait_for(writing, 5) == "written"
    # Tries after 0.5, 1.5, 3.5, 7.5, 12.5 and 17.5 s.
    assert calls == [2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 6, 7]
    assert [event for event, _ in told] == ["disk_full", "disk_has_room"]
    assert f"the disk under /data/run is full ({os.strerror(code)}): 4096 bytes are needed, " in told[0][1]
    assert disk.now() == []


async def test_an_error_of_another_kind_is_raised_at_once() -> None:
    disk = DiskWaits(clock=ManualClock())
    with pytest.raises(OSError, match="Input/output"):
        await disk.until(FullFor(1, code=errno.EIO))
    assert disk.now() == []


async def test_writers_of_one_folder_are_one_wait_of_the_largest_need_and_a_cancelled_writer_waits_no_more(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    disk = DiskWaits(clock=clock, tell=lambda event, line: None)

    def wants(needed_bytes: int) -> Callable[[], Awaitable[None]]:
        async def attempt() -> None:
            raise NoRoom(tmp_path, needed_bytes)

        return attempt

    writing = [asyncio.create_task(disk.until(wants(size))) for size in (10_000, 1_000_000)]
    await settle()
    await clock.advance(0.4)
    (wait,) = disk.now()
    assert (wait.folder, wait.needed_bytes, wait.since_s) == (tmp_path, 1_000_000, pytest.approx(0.4))
    writing[1].cancel()
    await asyncio.gather(writing[1], return_exceptions=True)
    assert [wait.needed_bytes for wait in disk.now()] == [10_000]
    writing[0].cancel()
    await asyncio.gather(writing[0], return_exceptions=True)
    assert disk.now() == []


def raised_from(cause: Exception) -> SluiceError:
    try:
        raise SluiceError(f"export failed: {cause}") from cause
    except SluiceError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EACCES, "No space left on device"), False),
        (safetensors.SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("inline_container: Disk quota exceeded"), True),
        (raised_from(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), True),
        (DiskFull("redis: full"), True),
        (Unavailable("away"), False),
        (ValueError("x"), False),
    ],
)
def test_a_full_disk_is_known_by_its_number_and_where_there_is_none_by_its_text(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def test_the_folder_and_the_bytes_are_those_of_the_error_or_of_its_cause() -> None:
    assert folder_of(raised_from(NoRoom(Path("/a/b"), 9_000))) == Path("/a/b")
    assert needed_by(raised_from(NoRoom(Path("/a/b"), 9_000))) == 9_000
    assert folder_of(OSError(errno.ENOSPC, "x", "/a/b/file")) == Path("/a/b")
    assert (folder_of(DiskFull("x")), needed_by(DiskFull("x"))) == (None, 4096)


def test_it_crosses_the_wire_as_unavailable_and_is_known_on_the_other_side() -> None:
    line = str(NoRoom(Path("/a/b"), 9_000))

    class Failed:
        def code(self) -> Any:
            return status_of(DiskFull(line))

        def details(self) -> str:
            return message_of(DiskFull(line))

        def trailing_metadata(self) -> Any:
            return trailers_of(DiskFull(line))

    error = error_of(Failed(), peer="coordinator")
    assert type(error) is DiskFull
    assert "/a/b" in str(error)
    assert Failed().code().name == "UNAVAILABLE"


def test_a_server_answers_a_write_without_room_as_one_to_try_again() -> None:
    assert status_of(known(OSError(errno.ENOSPC, "x"))).name == "UNAVAILABLE"
    assert status_of(known(OSError(errno.EIO, "x"))).name == "INTERNAL"


def test_a_lineage_without_room_is_not_given_out_and_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    book = LineageBook(tmp_path / "lineages")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(NoRoom) as caught:
            book.mint()
    assert (caught.value.folder, caught.value.errno) == (tmp_path, errno.EDQUOT)
    assert book.mint() == "c", "a name that may be on disk is not given out"


def test_without_details_unavailable_is_no_full_disk() -> None:
    import grpc

    class Failed:
        def code(self) -> Any:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return "connection refused"

        def trailing_metadata(self) -> Any:
            return ()

    assert type(error_of(Failed(), peer="coordinator")) is Unavailable


class Small:
    """A disk that takes so many bytes more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        real = durable.open_private
        for module in (durable, full_disk):
            monkeypatch.setattr(module, "open_private", lambda *args, **kwargs: _Counted(real(*args, **kwargs), self))


class _Counted:
    def __init__(self, file: Any, disk: Small) -> None:
        self._file, self._disk = file, disk

    def __enter__(self) -> "_Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        taken = min(len(data), self._disk.free_bytes)
        if not taken and len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._disk.free_bytes -= taken
        return self._file.write(data[:taken])


def test_a_line_without_room_leaves_the_file_as_it_was_and_is_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    append_line(path, {"a": 1})
    disk = Small(monkeypatch, free_bytes=5)
    for _ in range(3):
        with pytest.raises(NoRoom) as caught:
            append_lines(path, [{"b": 2}, {"c": 3}])
        assert (caught.value.folder, path.read_bytes()) == (tmp_path, b'{"a":1}\n')
    disk.free_bytes = 100
    append_lines(path, [{"b": 2}, {"c": 3}])
    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n{"c":3}\n'


def test_a_file_without_room_names_its_whole_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Small(monkeypatch, free_bytes=12_000)
    with pytest.raises(NoRoom) as caught:
        write_synced(tmp_path / "file", (bytes(10_000) for _ in range(5)))
    assert (caught.value.needed_bytes, caught.value.errno) == (50_000, errno.ENOSPC)
    assert os.listdir(tmp_path) == []


def test_room_is_checked_by_numbers_and_proven_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "not" / "there", 1)
    prove_room(tmp_path, 10_000)
    prove_room(tmp_path / "not" / "there", 10_000)
    with pytest.raises(NoRoom, match="is full"):
        check_room(tmp_path, 1 << 60)
    Small(monkeypatch, free_bytes=3_000)
    with pytest.raises(NoRoom, match="10000 bytes are needed"):  # as with a quota, which the numbers do not show
        prove_room(tmp_path, 10_000)
    assert os.listdir(tmp_path) == []


async def test_a_process_that_has_to_leave_waits_no_longer() -> None:
    disk = DiskWaits(clock=ManualClock(), tell=lambda event, line: None)
    writing = asyncio.create_task(disk.until(FullFor(100)))
    await settle()
    disk.give_up()
    with pytest.raises(DiskFull, match="/data/run"):
        await writing
    with pytest.raises(DiskFull, match="/data/run"):
        await disk.until(FullFor(100))
    assert await disk.until(FullFor(0)) == "written"
