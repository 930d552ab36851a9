"""RUN/batches/step-000012.groups: the groups of one batch, length-framed (uint32, little-endian), each a Group under zstd.

The coordinator writes batch files and hands them out byte for byte; every other program only reads them.
"""

import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from sluice.errors import DataError

_FRAME = struct.Struct("<I")
_NAME = re.compile(r"step-(\d+)\.")


def batch_path(run_dir: Path, step: int) -> Path:
    """The path of a step's batch file, which is kept while a restored learner may ask for the batch."""
    return run_dir / "batches" / f"step-{step:06d}.groups"


def poison_path(run_dir: Path, step: int, digest: str) -> Path:
    """The path of a batch that was set aside because the learner died on it; kept for ever, for people."""
    return run_dir / "batches" / f"poison-{step:06d}-{digest[:12]}.groups"


def poison_files(run_dir: Path) -> list[Path]:
    """Every batch that was set aside, in the order of steps."""
    return sorted((run_dir / "batches").glob("poison-*.groups"))


def batch_files(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """Every batch file with its step, staged files too, in no order."""
    for path in (run_dir / "batches").glob("step-*"):
        if match := _NAME.match(path.name):
            yield int(match[1]), path


def frames(payloads: Iterable[bytes]) -> Iterator[bytes]:
    """The body of a batch file, piece by piece."""
    for payload in payloads:
        yield _FRAME.pack(len(payload))
        yield payload


def digest_of(payloads: Iterable[bytes]) -> str:
    """blake3 of the body of the batch file with these groups, hex: the batch's digest everywhere."""
    digest = blake3()
    for piece in frames(payloads):
        digest.update(piece)
    return digest.hexdigest()


def payloads_of(body: bytes) -> list[bytes]:
    """The groups in the body of a batch file. Raises DataError for a body that ends within a group."""
    payloads, position = [], 0
    while position < len(body):
        start = position + _FRAME.size
        length = _FRAME.unpack_from(body, position)[0] if start <= len(body) else 0
        position = start + length
        if position > len(body):
            raise DataError(f"batch file: ends within group {len(payloads)}; the file is damaged")
        payloads.append(body[start:position])
    return payloads


def payload_at(file: BinaryIO, index: int) -> bytes:
    """Group `index` of an open batch file, read without the other groups. Raises IndexError when there are fewer groups."""
    while header := file.read(_FRAME.size):
        (length,) = _FRAME.unpack(header)
        if index == 0:
            return file.read(length)
        file.seek(length, os.SEEK_CUR)
        index -= 1
    raise IndexError("batch file: it has fewer groups")
