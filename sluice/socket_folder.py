"""Where Unix sockets can lie: their whole path has room for few bytes, and TMPDIR may be long."""

import os
import tempfile
from pathlib import Path

MAX_PATH_BYTES = 103
"""sun_path has room for 107 bytes on Linux (unix(7)) and for 103 on macOS."""

FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
"""What is tried after the folder for temporary files."""


def socket_folder(*, room_bytes: int) -> str | None:
    """A folder that this process can write, where a socket's path has `room_bytes` below the folder; None without one."""
    for name in (tempfile.gettempdir(), *FOLDERS):
        folder = str(Path(name).absolute())
        fits = len(os.fsencode(folder)) + 1 + room_bytes <= MAX_PATH_BYTES
        if fits and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None
