"""What a process says is left out while the disk of its log is full, and never ends the process."""

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from sluice.launch.view import make_view
from sluice.telemetry.full_disk_stream import FullDiskStream
from sluice.telemetry.logs import configure_logs


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file of the kernel that never has room."""
    with Path("/dev/full").open("w") as stream:
        yield stream


@pytest.fixture
def restored_logs() -> Iterator[None]:
    handlers, former = logging.root.handlers[:], structlog.get_config()
    yield
    structlog.configure(**former)
    logging.root.handlers[:] = handlers


def test_lines_without_room_are_left_out_and_counted_when_there_is_room_again(tmp_path: Path, full: TextIO) -> None:
    path = tmp_path / "log"
    with path.open("w") as file:
        stream = FullDiskStream(file)
        stream.write("one\n")
        stream._stream = full
        for text in ("two\n", "three\n"):
            assert stream.write(text) == len(text)
        stream._stream = file
        stream.write("four\n")
    assert path.read_text() == "one\n2 lines were left out while the disk was full\nfour\n"


def test_a_stream_in_memory_is_written_to_and_other_errors_are_raised() -> None:
    stream = io.StringIO()
    FullDiskStream(stream).write("ä\n")
    assert stream.getvalue() == "ä\n"
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        FullDiskStream(stream).write("x")


@pytest.mark.usefixtures("restored_logs")
@pytest.mark.parametrize("fmt", ["console", "json"])
def test_a_process_logs_on_a_full_disk_and_lives(full: TextIO, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", full)
    logging.root.handlers.clear()
    configure_logs(service="coordinator", fmt=fmt)  # type: ignore[arg-type]
    for _ in range(1000):
        structlog.get_logger().error("disk_full", reason="x" * 100)
        logging.getLogger("foreign").warning("x")


def test_a_view_on_a_full_disk_lives(full: TextIO) -> None:
    view = make_view(full, plain=True)
    for _ in range(1000):
        view.message("x" * 100)
    view.close()
