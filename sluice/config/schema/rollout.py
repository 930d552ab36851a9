"""`rollout`: generation."""

from typing import Final, Literal

from pydantic import Field

from sluice.config.schema.section import MOST_SAMPLES as MOST_OF_A_PROMPT
from sluice.config.schema.section import PositiveFloat, PositiveInt, Section, Temperature

DEFAULT_SAMPLES: Final = 256
MOST_SAMPLES: Final = 1024
"""The bound of `max_num_seqs: auto`: what vLLM chooses by itself on the largest GPUs."""


class RolloutConfig(Section):
    """Generation."""

    n: int = Field(default=16, gt=0, le=MOST_OF_A_PROMPT, description="samples a group")
    temperature: Temperature = Field(default=1.0, description="sampling temperature of training")
    engine: Literal["vllm", "transformers"] = Field(default="vllm", description="inference engine")
    tensor_parallel_size: PositiveInt = Field(default=1, description="devices one vLLM engine is spread over")
    max_num_seqs: PositiveInt | Literal["auto"] = Field(
        default=DEFAULT_SAMPLES,
        description="samples an engine runs at once; auto: as many as its KV cache will hold until they end, "
        f"1 to {MOST_SAMPLES}, and the coordinator keeps the others ({DEFAULT_SAMPLES} with the transformers engine, whose "
        "cache grows)",
    )
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1, description="CUDA only, without kv_cache_bytes")
    enforce_eager: bool = Field(default=False, description="run the model without CUDA graphs; a CPU has none")
    kv_cache_bytes: PositiveInt | None = Field(
        default=None,
        description="bytes of the KV cache on each device; default 128 MiB on a CPU, on CUDA what gpu_memory_utilization "
        "leaves. Set it where a learner shares the GPU",
    )
    threads: PositiveInt = Field(default=1, description="OMP threads of a CPU engine")
    step_timeout_s: PositiveFloat = Field(
        default=120.0,
        description="limit of one engine step or change of weights (which has a second more for each 100 MB); a rollout "
        "that takes longer counts as hung, ends and is started again",
    )
    max_turns: PositiveInt = Field(default=8, description="turns that the policy has in an episode at most")
    turn_timeout_s: PositiveFloat = Field(
        default=60.0,
        description="limit of an environment's answer to one turn; then the episode starts again elsewhere",
    )

    @property
    def most_samples(self) -> int:
        """The samples that an engine may ever run at once."""
        return MOST_SAMPLES if self.max_num_seqs == "auto" else self.max_num_seqs
