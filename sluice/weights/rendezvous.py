"""Where and as whom an end joins an epoch's group. No torch."""

from dataclasses import dataclass
from typing import Literal

from sluice.nccl import JOIN_LIMIT_S

Collective = Literal["gloo", "nccl"]
Carrier = Literal["gloo", "nccl", "grpc"]
"""What brings buckets from a source to a receiver."""

ROOT_RANK = 0
"""The sender's rank in every group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendezvous:
    """The address, the names and the rank for joining one epoch's group."""

    host: str
    port: int
    secret: str
    """Known to the two ends alone, by which they know each other (authentication.py)."""
    epoch: str
    """Unique to one membership; never used twice."""
    rank: int
    world_size: int
    timeout_s: float
    """Limit of every operation, and of the meeting before the first one."""
    source: Literal["learner", "rollout"] = "learner"
    """The role of rank 0, on which the receiver insists over gRPC."""


def join_limit_s(backend: str, timeout_s: float) -> float:
    """How long a join may take: as long as an operation, and over NCCL the making of the communicator besides."""
    return timeout_s + JOIN_LIMIT_S if backend == "nccl" else timeout_s
