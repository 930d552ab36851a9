"""Buckets as messages of `FetchWeights`, made and read without a protobuf object in between.

A message of protobuf would hold a copy of its bytes, and its wire form another one. The wire form is that of
`FetchWeightsResponse` all the same, so that any gRPC client can read the stream.
"""

from collections.abc import Iterator

import numpy as np

from sluice.errors import TransferError

PIECE_BYTES = 1 << 20
"""Bytes of weights in a message. Measured on two cores, loopback: from 256 KiB to 4 MiB rates are alike; smaller is slower."""

_BUCKET, _DATA = 0x08, 0x12
"""Field 1 as a varint, field 2 as bytes."""


def pieces(bucket: int, data: np.ndarray) -> Iterator[bytes]:
    """The messages of one bucket, uint8[n], n > 0."""
    for start in range(0, data.size, PIECE_BYTES):
        piece = data[start : start + PIECE_BYTES]
        number = bytes([_BUCKET]) + _varint(bucket) if bucket else b""
        yield b"".join((number, bytes([_DATA]), _varint(piece.size), piece.data))


def piece_of(message: bytes) -> tuple[int, memoryview]:
    """The number of the bucket, and the bytes. Raises TransferError for a message that is no piece."""
    try:
        place, bucket = 0, 0
        if message[0] == _BUCKET:
            bucket, place = _read_varint(message, 1)
        if message[place] == _DATA:
            size, place = _read_varint(message, place + 1)
            if place + size == len(message):
                return bucket, memoryview(message)[place:]
    except IndexError:
        pass
    raise TransferError(f"a message of {len(message)} bytes is no piece of a bucket")


def _varint(number: int) -> bytes:
    coded = bytearray()
    while number > 0x7F:
        coded.append(0x80 | (number & 0x7F))
        number >>= 7
    coded.append(number)
    return bytes(coded)


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at `place`, and the place behind it. Raises IndexError at the message's end."""
    number = 0
    for shift in range(0, 63, 7):
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise IndexError(place)
