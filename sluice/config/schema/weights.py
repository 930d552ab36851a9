"""`weights`: how weights get to rollouts."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import PositiveFloat, PositiveInt, Section


class WeightsConfig(Section):
    """Weight push."""

    backend: Literal["auto", "nccl", "gloo", "file"] = Field(
        default="auto", description="auto: nccl between two GPUs, gloo on one GPU and with a CPU"
    )
    encoding: Literal["auto", "dense", "delta"] = Field(
        default="auto",
        description="what travels to a rollout that holds an earlier version: auto: what has changed, where that is at most "
        "half of the version; delta: wherever it is shorter; dense: always the whole version",
    )
    bucket_bytes: PositiveInt = Field(default=1 << 20, description="bytes a transfer operation")
    timeout_s: PositiveFloat = Field(default=10.0, description="limit of a join and of every transfer operation")
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

    def problems(self) -> Iterator[str]:
        """Refuses deltas where every push is a whole version."""
        if self.encoding != "delta":
            return
        if self.backend == "file":
            yield "encoding: delta needs weights.backend auto, gloo or nccl, got file, whose files hold whole versions"
        if self.lora == "adapter":
            yield "encoding: delta needs weights.lora: merged, got adapter, which pushes adapters whole: they are small"

    @property
    def delta_share(self) -> float:
        """The largest share of a version's bytes at which a delta is sent; 0: no deltas."""
        if self.backend == "file" or self.lora == "adapter":
            return 0.0
        return {"auto": 0.5, "delta": 1.0, "dense": 0.0}[self.encoding]
