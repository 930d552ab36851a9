"""Pieces of buckets on the wire: protobuf's own form, made and read without it."""

import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.v1 import weight_pb2
from sluice.weights import pieces as module
from sluice.weights.pieces import piece_of, pieces


@pytest.mark.parametrize("bucket", [0, 1, 127, 128, 300_000, 2**40])
def test_a_piece_is_the_message_that_protobuf_would_write(bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 200)
    data = np.random.default_rng(0).integers(0, 255, 450, np.uint8)
    made = list(pieces(bucket, data))
    assert made == [
        weight_pb2.FetchWeightsResponse(bucket=bucket, data=data[start : start + 200].tobytes()).SerializeToString()
        for start in (0, 200, 400)
    ]
    assert [piece_of(message)[0] for message in made] == [bucket] * 3
    assert b"".join(piece_of(message)[1] for message in made) == data.tobytes()


@pytest.mark.parametrize(
    "message",
    [b"", b"\x08", b"\x08\x01", b"\x12\x05abc", b"\x12\x02abc", b"\x12", b"\x1a\x01a", b"\x12" + b"\xff" * 12],
)
def test_what_is_no_piece_is_refused(message: bytes) -> None:
    with pytest.raises(TransferError, match="is no piece of a bucket"):
        piece_of(message)
