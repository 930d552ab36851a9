"""`eval`: evaluation on held-out prompts."""

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class EvalConfig(Section):
    """Evaluation on held-out prompts."""

    every_steps: NonNegativeInt = Field(default=10, description="steps between the small evaluations; 0: none")
    prompts: PositiveInt = Field(default=256, description="prompts of the full evaluation before and after")
    n: PositiveInt = Field(default=8, description="samples a prompt of the full evaluation")
    small_prompts: PositiveInt = Field(default=64, description="prompts of an evaluation in between")
    small_n: PositiveInt = Field(default=4, description="samples a prompt of an evaluation in between")
    temperature: PositiveFloat = Field(default=1.0, description="sampling temperature of evaluations")
    greedy: bool = Field(default=True, description="also one greedy completion a prompt")
    timeout_s: PositiveFloat = Field(default=600.0, description="longest time a rollout stays pinned")
