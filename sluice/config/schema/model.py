"""`model`: the policy."""

from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PathText, PositiveFloat, Section


class ModelConfig(Section):
    """The policy."""

    path: PathText = Field(description="a Hugging Face model folder with tokenizer")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="type of the weights pushed to rollouts"
    )
    lora_rank: NonNegativeInt = Field(
        default=0, description="rank of trained LoRA adapters (arXiv:2106.09685); 0 trains every weight"
    )
    lora_alpha: PositiveFloat = Field(default=16.0, description="adapters are scaled by lora_alpha / lora_rank")
    renderer: str = Field(
        default="auto",
        description="what writes the tokens of episodes: auto, the model's chat template, or a family of the `renderers` "
        "library such as qwen3 (docs/environments.md)",
    )
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="layers with an adapter: all linear layers but the head, or named layers"
    )
