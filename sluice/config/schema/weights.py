"""`weights`: how weights get to rollouts."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import PositiveFloat, PositiveInt, Section

CPU_BUCKET_BYTES = 1 << 20
"""Large operations of gloo hide a death (docs/adr/0002-pair-transfer-groups.md)."""

CUDA_BUCKET_BYTES = 64 << 20
"""An operation of NCCL is asked every millisecond at the longest whether it is over; 64 MiB take 1.3 ms at 50 GB/s."""


class WeightsConfig(Section):
    """Weight push."""

    backend: Literal["auto", "nccl", "gloo", "grpc", "file"] = Field(
        default="auto",
        description="grpc: over the run's own gRPC, encrypted where the run has certificates; auto: grpc where a run with "
        "certificates listens beyond loopback, unless network.trusted, else nccl between two GPUs, gloo on one GPU and with "
        "a CPU",
    )
    bucket_bytes: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="bytes a transfer operation; auto: 64 MiB where the learner has a GPU, otherwise 1 MiB",
    )
    timeout_s: PositiveFloat = Field(
        default=10.0,
        description="limit of a join and of every transfer operation; nccl has 120 s more for making a communicator",
    )
    relay: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: a version goes to one rollout of each other machine after the other, and there from rollout to "
        "rollout (docs/weights.md); off: the learner sends to each rollout",
    )
    encoding: Literal["auto", "dense", "delta"] = Field(
        default="auto",
        description="what travels to a rollout that holds an earlier version: auto: what has changed, where that is at most "
        "half of the version; delta: wherever it is shorter; dense: always the whole version",
    )
    inflight: Literal["keep", "recompute", "finish", "abort"] = Field(
        default="keep",
        description="running samples when weights change: keep their KV, recompute their KV, finish first (for "
        "coordinator.generate_timeout_s at most), or abort and be drawn again",
    )
    probe: bool = Field(
        default=True, description="a short greedy completion, compared among rollouts, before a rollout's first group"
    )
    lora: Literal["merged", "adapter"] = Field(
        default="merged",
        description="with model.lora_rank: push whole merged weights, or adapters only, which rollouts merge themselves",
    )

    def bucket_bytes_on(self, device_type: str) -> int:
        """Bytes a transfer operation of a learner on a `cuda` or `cpu` device."""
        if self.bucket_bytes != "auto":
            return self.bucket_bytes
        return CUDA_BUCKET_BYTES if device_type == "cuda" else CPU_BUCKET_BYTES

    def problems(self) -> Iterator[str]:
        """Refuses deltas where every push is a whole version."""
        if self.encoding != "delta":
            return
        if self.backend == "file":
            yield "encoding: delta needs weights.backend auto, gloo, nccl or grpc, got file, whose files hold whole versions"
        if self.lora == "adapter":
            yield "encoding: delta needs weights.lora: merged, got adapter, which pushes adapters whole: they are small"

    @property
    def delta_share(self) -> float:
        """The largest share of a version's bytes at which a delta is sent; 0: no deltas."""
        if self.backend == "file" or self.lora == "adapter":
            return 0.0
        return {"auto": 0.5, "delta": 1.0, "dense": 0.0}[self.encoding]
