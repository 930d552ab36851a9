"""The coordinator as the board at which the machines of a learner meet; the one module of this room that knows gRPC."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import structlog

from services.learner.distributed.meeting import ASK_EVERY_S, Board
from sluice.errors import Expired, Overloaded, Unavailable
from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.error_status import error_of
from sluice.rpc.registration import CALL_TIMEOUT_S
from sluice.rpc.service import ServiceOptions
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1.coordinator_pb2_grpc import CoordinatorServiceStub

PATIENCE_S = 120.0
"""As long as a service waits for a coordinator that does not answer (`Registration.patience_s`)."""

log = structlog.get_logger(__name__)


@contextmanager
def coordinators_board(options: ServiceOptions, round_name: str) -> Iterator[Board]:
    """The board of one round. A call raises the coordinator's refusal, or Unavailable after PATIENCE_S without an answer."""
    channel = open_blocking_channel(options.coordinator, credentials=options.credentials)
    stub = CoordinatorServiceStub(channel)

    def meet(endpoint: str, /, *, wait_s: float = 0.0) -> str:
        request = pb.MeetLearnerRequest(round=round_name, endpoint=endpoint, wait_s=wait_s)
        until_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return stub.MeetLearner(request, timeout=CALL_TIMEOUT_S + wait_s).endpoint
            except grpc.RpcError as error:
                told = error_of(error, peer=f"coordinator {options.coordinator}")  # type: ignore[arg-type]
                if not isinstance(told, (Unavailable, Expired, Overloaded)) or time.monotonic() >= until_s:
                    raise told from error
                log.warning("waiting_for_the_coordinator", reason=str(told))
            time.sleep(ASK_EVERY_S)

    try:
        yield meet
    finally:
        channel.close()
