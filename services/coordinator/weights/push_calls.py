"""The RPCs of a push, as its parts call them; wire/clients.py makes the calls."""

from collections.abc import Awaitable
from typing import Protocol

from services.coordinator.state.member import Member
from sluice.v1 import learner_pb2, rollout_pb2


class LearnerCalls(Protocol):
    """The learner's RPCs of a push."""

    def OpenTransfer(
        self, request: learner_pb2.OpenTransferRequest, /, *, timeout: float
    ) -> Awaitable[learner_pb2.OpenTransferResponse]: ...


class RolloutCalls(Protocol):
    """A rollout's RPCs of a push, as a receiver and as a source."""

    def GetInfo(
        self, request: rollout_pb2.RolloutServiceGetInfoRequest, /, *, timeout: float
    ) -> Awaitable[rollout_pb2.RolloutServiceGetInfoResponse]: ...
    def OpenTransfer(
        self, request: rollout_pb2.RolloutServiceOpenTransferRequest, /, *, timeout: float
    ) -> Awaitable[rollout_pb2.RolloutServiceOpenTransferResponse]: ...
    def JoinEpoch(
        self, request: rollout_pb2.JoinEpochRequest, /, *, timeout: float
    ) -> Awaitable[rollout_pb2.JoinEpochResponse]: ...
    def ReceiveWeights(
        self, request: rollout_pb2.ReceiveWeightsRequest, /, *, timeout: float
    ) -> Awaitable[rollout_pb2.ReceiveWeightsResponse]: ...
    def ApplyWeights(
        self, request: rollout_pb2.ApplyWeightsRequest, /, *, timeout: float
    ) -> Awaitable[rollout_pb2.ApplyWeightsResponse]: ...


class PushClients(Protocol):
    """Both ends of a push by member (wire/clients.py)."""

    def learner(self, member: Member) -> LearnerCalls: ...
    def rollout(self, member: Member) -> RolloutCalls: ...
