"""A group as the queue, the batch files and GetBatch have it: a Group message under zstd, self-contained."""

import zstandard
from google.protobuf.message import DecodeError

from sluice.limits import MAX_MESSAGE_BYTES
from sluice.v1 import common_pb2

_LEVEL = 1
"""Chosen: token ids and log-probabilities hardly get smaller at higher levels."""


class StoredGroups:
    """Groups to payloads and back. For one thread: zstd's contexts cost more to make than a small group to compress."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, body: bytes) -> bytes:
        """The payload of a serialised Group."""
        return self._compressor.compress(body)

    def unpack(self, payload: bytes) -> common_pb2.Group:
        """The message in a payload. Raises ValueError for a payload that is damaged, or larger than a message may be."""
        try:
            if (size := zstandard.frame_content_size(payload)) > MAX_MESSAGE_BYTES:
                raise ValueError(f"stored group: has {size} bytes, a message at most {MAX_MESSAGE_BYTES}")
            return common_pb2.Group.FromString(self._decompressor.decompress(payload))
        except (zstandard.ZstdError, DecodeError) as error:
            raise ValueError(f"stored group: is damaged: {error}") from error
