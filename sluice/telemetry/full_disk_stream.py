"""A text stream whose lines are left out while its disk is full: nothing that a process says may end the process."""

import os
from typing import TextIO

from sluice.run_dir.full_disk import is_full


class FullDiskStream:
    """Writes to the file behind `stream` at once and without a buffer, so that no line is kept back to fail later.

    The first line after lines that were left out says how many. Other errors are raised.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._left_out = 0
        self._torn = False

    def write(self, text: str) -> int:
        """Writes the text, or leaves it out."""
        try:
            if self._left_out:
                note = f"{self._left_out} lines were left out while the disk was full\n"
                self._write(f"\n{note}" if self._torn else note)
                self._left_out, self._torn = 0, False
            self._write(text)
        except OSError as error:
            if not is_full(error):
                raise
            self._left_out += text.count("\n") or 1
        return len(text)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def isatty(self) -> bool:
        """Whether people look at the stream."""
        return self._stream.isatty()

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return self._stream.encoding or "utf-8"

    def fileno(self) -> int:
        """The descriptor behind the stream. Raises OSError or ValueError where there is none."""
        return self._stream.fileno()

    def _write(self, text: str) -> None:
        try:
            descriptor = self.fileno()
        except (OSError, ValueError, AttributeError):  # a stream in memory
            self._stream.write(text)
            self._stream.flush()
            return
        self._stream.flush()  # what others have written before
        left = text.encode(self.encoding, errors="backslashreplace")
        while left:
            written = os.write(descriptor, left)
            left, self._torn = left[written:], True
        self._torn = False
