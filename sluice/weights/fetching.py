"""The receiving end of weights over gRPC, as a group of two: what the receiver says it lacks first begins a stream.

Blocks the receiving thread. A source that sends nothing for the epoch's limit is given up; gRPC knows limits of whole calls
alone, so a thread watches while a bucket is awaited.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from sluice.addresses import joined
from sluice.errors import TransferError
from sluice.rpc.access import Role
from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.credentials import Credentials
from sluice.v1 import weight_pb2
from sluice.weights.backends import ROOT_RANK, Rendezvous
from sluice.weights.pieces import PIECE_BYTES, piece_of

FETCH = "/sluice.v1.WeightService/FetchWeights"

LOOKAHEAD_BYTES = 16 << 20
"""What a source may send before the receiver has read it: 1 Gbit/s over 40 ms has 5 MB on the way. Measured over such a link
with certificates: 94 to 113 MB/s of 125, where gRPC's own estimate gives 67 to 99."""

_LOOKS = 20
"""How often within its limit the watch looks at the clock."""


class FetchedGroup:
    """Implements backends.TransferGroup for a receiver."""

    def __init__(self, rendezvous: Rendezvous, *, credentials: Credentials) -> None:
        """Connects when the first bucket is asked for. Raises ConfigError when these credentials must not be shown there."""
        self._where = rendezvous
        address = joined(rendezvous.host, rendezvous.port)
        self._channel = open_blocking_channel(
            address,
            credentials=credentials,
            to=Role(rendezvous.source),
            options=[("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES)],
        )
        self._fetch = self._channel.unary_stream(
            FETCH, request_serializer=weight_pb2.FetchWeightsRequest.SerializeToString
        )
        self._stream: _Stream | None = None

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        """TransferGroup.broadcast: as the root says which bucket it lacks first (int64), else takes the next bucket."""
        if root != ROOT_RANK:
            self._begin(int(data.view("<i8")[0]))
        else:
            self.start(data).wait()

    def start(self, data: np.ndarray, *, root: int = ROOT_RANK) -> "_FetchedFlight":
        """TransferGroup.start. gRPC reads ahead by itself, so a flight takes its bucket when it is waited for."""
        assert root == ROOT_RANK
        assert self._stream is not None
        return _FetchedFlight(self._stream, data)

    def rest(self) -> None:
        """TransferGroup.rest: a stream ends with its last bucket."""

    def close(self) -> None:
        """TransferGroup.close."""
        if self._stream is not None:
            self._stream.close()
        self._channel.close()

    def _begin(self, bucket: int) -> None:
        if self._stream is not None:
            self._stream.close()
        where = self._where
        request = weight_pb2.FetchWeightsRequest(epoch=where.epoch, secret=where.secret, first_bucket=bucket)
        self._stream = _Stream(self._fetch(request), first=bucket, where=where)


@dataclass(frozen=True, slots=True)
class _FetchedFlight:
    """Flight of flights.py; flights are waited for in the order of their start."""

    stream: "_Stream" = field(repr=False)
    bucket: np.ndarray = field(repr=False)

    def wait(self) -> None:
        self.stream.read(self.bucket)


class _Stream:
    """One call, whose buckets are read in order."""

    def __init__(self, call: Any, *, first: int, where: Rendezvous) -> None:
        self._call, self._bucket, self._where = call, first, where
        self._silent_since: float | None = None
        """Clock: monotonic. None: nothing is awaited."""
        self._gave_up = False
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="weights-watch", daemon=True).start()

    def read(self, bucket: np.ndarray) -> None:
        """Fills uint8[n] with the next bucket. Raises TransferError; the stream is then over."""
        try:
            for piece in self._pieces(bucket.size):
                bucket[piece.start : piece.stop] = self._next(piece.stop - piece.start)
        finally:
            self._silent_since = None
        self._bucket += 1

    def close(self) -> None:
        self._closed.set()
        self._call.cancel()

    def _next(self, size: int) -> np.ndarray:
        self._silent_since = time.monotonic()
        try:
            message = next(self._call)
        except StopIteration:
            raise self._error(f"the source has ended the stream at bucket {self._bucket}") from None
        except grpc.RpcError as error:
            raise self._error(self._reason(error)) from None
        bucket, data = piece_of(message)
        if bucket != self._bucket or len(data) != size:
            raise self._error(
                f"bucket {self._bucket} lacks {size} bytes here, the source sent {len(data)} of bucket {bucket}"
            )
        return np.frombuffer(data, np.uint8)

    def _pieces(self, size: int) -> Iterator[slice]:
        return (slice(start, min(start + PIECE_BYTES, size)) for start in range(0, size, PIECE_BYTES))

    def _reason(self, error: grpc.RpcError) -> str:
        if self._gave_up:
            return f"nothing of bucket {self._bucket} has arrived within {self._where.timeout_s:g} s"
        assert isinstance(error, grpc.Call)
        return f"{error.code().name}: {error.details()}"

    def _error(self, reason: str) -> TransferError:
        where = self._where
        return TransferError(f"epoch {where.epoch}: {joined(where.host, where.port)}: {reason}")

    def _watch(self) -> None:
        """Ends the call when its source is silent for too long."""
        limit_s = self._where.timeout_s
        while not self._closed.wait(limit_s / _LOOKS):
            since = self._silent_since
            if since is not None and time.monotonic() > since + limit_s:
                self._gave_up = True
                self._call.cancel()
                return
