"""The serving end of weights over gRPC, for the learner as for a rollout that relays: hands out what `Links` has opened.

gRPC's own flow control bounds what lies in memory: one piece a stream beside what HTTP/2 has in flight. A receiver that dies
frees its stream at once, one that reads nothing at the transfer's limit.

 who waits    for what                          unblocked by
 a stream     a bucket that a relay lacks       the bucket's arrival, the cargo's failure, the epoch's limit
 a stream     the receiver to read a piece      the receiver, its end, the epoch's limit
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import grpc
import numpy as np

from sluice.errors import InvalidRequest, NotReady
from sluice.rpc.gate import limit_sends
from sluice.v1 import weight_pb2
from sluice.weights.cargo import Cargo
from sluice.weights.offers import Offer
from sluice.weights.pieces import pieces

SERVICE_NAME = weight_pb2.DESCRIPTOR.services_by_name["WeightService"].full_name
FETCH = f"/{SERVICE_NAME}/FetchWeights"

MOST_WAITING = 64
"""Threads in which streams wait for buckets that a relay lacks; chosen far above the receivers that one relay has."""


class Offered(Protocol):
    """`Links.offered`."""

    def __call__(self, *, epoch: str, secret: str) -> Offer: ...


class WeightStreams:
    """WeightService over what one process's links offer."""

    name = SERVICE_NAME

    def __init__(self, offered: Offered) -> None:
        self._offered = offered
        self._waiting = ThreadPoolExecutor(MOST_WAITING, thread_name_prefix="weights-wait")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service. Responses are written as bytes (pieces.py)."""
        fetch = grpc.unary_stream_rpc_method_handler(
            self.FetchWeights, request_deserializer=weight_pb2.FetchWeightsRequest.FromString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"FetchWeights": fetch}),))

    def close(self) -> None:
        """Lets threads that wait for buckets end by themselves."""
        self._waiting.shutdown(wait=False, cancel_futures=True)

    async def FetchWeights(
        self, request: weight_pb2.FetchWeightsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        """See protos/sluice/v1/weight.proto."""
        offer = self._offered(epoch=request.epoch, secret=request.secret)
        timeout_s = offer.rendezvous.timeout_s
        limit_sends(timeout_s)
        with offer.fetched() as fetch:
            count, first = len(fetch.cargo.payload.bucket_digests), request.first_bucket
            if not 0 <= first <= count:
                raise InvalidRequest(f"fetch: first_bucket must be from 0 to {count}, got {first}")
            for bucket in range(first, count):
                data = await self._bucket(fetch.cargo, bucket, timeout_s)
                for piece in pieces(bucket, data):
                    if fetch.is_over:
                        raise NotReady(f"epoch {request.epoch} has ended, or is fetched anew")
                    yield piece

    async def _bucket(self, cargo: Cargo, bucket: int, timeout_s: float) -> np.ndarray:
        if bucket < cargo.verified:
            return cargo.wait(bucket, timeout_s=0.0)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._waiting, lambda: cargo.wait(bucket, timeout_s=timeout_s))
