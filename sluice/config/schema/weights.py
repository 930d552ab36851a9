"""`weights`: how weights get to rollouts."""

from typing import Literal

from pydantic import Field

from sluice.config.schema.section import PositiveFloat, PositiveInt, Section


class WeightsConfig(Section):
    """Weight push."""

    backend: Literal["auto", "nccl", "gloo", "file"] = Field(
        default="auto", description="auto: nccl between two GPUs, gloo on one GPU and with a CPU"
    )
    bucket_bytes: PositiveInt = Field(default=1 << 20, description="bytes a transfer operation")
    timeout_s: PositiveFloat = Field(default=10.0, description="limit of a join and of every transfer operation")
    relay: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: a version goes to one rollout of each other machine after the other, and there from rollout to "
        "rollout (docs/weights.md); off: the learner sends to each rollout",
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
