"""A disk that is soon full, for tests: a tmpfs, which only root may mount."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def disk_of(folder: Path, *, size_bytes: int) -> Iterator[Path]:
    """The folder, made, on a disk of its own. Raises OSError where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if mounted.returncode:
        raise OSError(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def fill(disk: Path, *, leave_bytes: int = 0) -> Path:
    """A ballast file that takes what is free, but for so much; removing the file makes room again."""
    ballast = disk / "ballast"
    facts = os.statvfs(disk)
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):  # the last block may not be free
        file.write(bytes(max(0, facts.f_bavail * facts.f_frsize - leave_bytes)))
    return ballast
