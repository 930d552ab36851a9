"""The pipe between the service and a worker: JSON objects, each after its length in 4 little-endian bytes.

JSON and not pickle: a worker that a completion has taken over must not be able to run code in the service.
"""

import asyncio
import json
import struct
from typing import Any, BinaryIO, Final

MAX_REPLY_BYTES: Final = 16 << 20
"""The longest frame that is taken from a worker; an answer repeats at most one completion."""

_LENGTH = struct.Struct("<I")

Frame = dict[str, Any]


def encode(frame: Frame) -> bytes:
    """One frame as bytes."""
    body = json.dumps(frame).encode()
    return _LENGTH.pack(len(body)) + body


async def receive(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises IncompleteReadError at the end of the stream, ValueError for bytes that are no frame."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_REPLY_BYTES:
        raise ValueError(f"worker: a reply must be <= {MAX_REPLY_BYTES} bytes, got {length}")
    return json.loads(await reader.readexactly(length))


def read(stream: BinaryIO) -> Frame | None:
    """The next frame, blocking; None at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return json.loads(stream.read(_LENGTH.unpack(head)[0]))


def write(stream: BinaryIO, frame: Frame) -> None:
    """Writes one frame and flushes it."""
    stream.write(encode(frame))
    stream.flush()
