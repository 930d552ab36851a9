"""RUN/batches/step-000012.groups: the groups of one batch, length-framed (uint32, little-endian), each a Group under zstd.

The coordinator writes these files and hands them out byte for byte; a reader of a run only looks.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

_FRAME = struct.Struct("<I")


def batch_path(run_dir: Path, step: int) -> Path:
    """Where the batch of a step is, while a checkpoint may ask for it."""
    return run_dir / "batches" / f"step-{step:06d}.groups"


def frame(payloads: Iterable[bytes]) -> bytes:
    """The body of a batch file."""
    return b"".join(_FRAME.pack(len(payload)) + payload for payload in payloads)


def payloads_of(body: bytes) -> list[bytes]:
    """The inverse of `frame`."""
    payloads, position = [], 0
    while position < len(body):
        (length,) = _FRAME.unpack_from(body, position)
        position += _FRAME.size
        payloads.append(body[position : position + length])
        position += length
    return payloads
